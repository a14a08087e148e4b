"""The report of runs in a bucket, written to a bucket."""

import json

from pacx_jax.evaluate.reports import run_report
from pacx_jax.run import metrics
from pacx_jax.stores import objects, staging
from tests.reliability import runs


def test_report_reads_a_workdir_in_a_bucket_and_is_written_to_one(url, tmp_path):
    writer = metrics.MetricsWriter(tmp_path, 0)
    writer.write(1, {"loss": 0.25})
    writer.close()
    config = runs.config("labs_dae", {})
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    for name in ("config.json", "metrics.jsonl"):
        staging.send(objects.Store(f"{url}/run"), name, tmp_path / name)
    out = f"{url}/pages/report.html"
    assert run_report.main([f"--workdir={url}/run", f"--out={out}"]) == 0
    page = staging.local(out).read_text()
    assert "Report of run" in page and ">0.25</td>" in page
    assert str(tmp_path) not in page
