"""The service's answers, asked in its own event loop without a socket."""

import asyncio
import io
import sys
import threading
import time

import httpx2
import numpy as np
import PIL.Image
import pytest
from prometheus_client.parser import text_string_to_metric_families

from launch import load_test
from pacx_jax.encoders.xray_encoder import Encoder
from pacx_jax.evaluate import rollout
from pacx_jax.evaluate.classifier import Classifier
from pacx_jax.serving import app, batching, model
from pacx_jax.serving.uploads import Limits
from tests import tiny

TOKEN = "a-token-of-a-test"


@pytest.fixture(scope="module")
def served():
    return model.Served(Encoder(tiny.folder("vit"), batch_size=4, num_devices=1))


def ask(served, *requests, limits=None, token="", hosts=("*",), start=True, wait=0.0):
    """The answers of a new service to (method, path, options), all at once."""

    async def run():
        service = app.Service(served, limits or Limits(), token, wait)
        if start:
            await service.start()
        client = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(service.application(hosts), False),
            base_url="http://localhost",
        )
        async with client:
            found = await asyncio.gather(
                *(client.request(m, path, **about) for m, path, about in requests)
            )
        service.stop()
        return found

    return asyncio.run(asyncio.wait_for(run(), 60))


def image(seed=0, mode="PNG"):
    grey = np.random.default_rng(seed).integers(0, 256, (40, 50), dtype=np.uint8)
    PIL.Image.fromarray(grey).save(file := io.BytesIO(), mode)
    return file.getvalue()


def test_embeddings_are_the_encoders_whatever_else_is_in_the_batch(served):
    files = [image(i) for i in range(7)]
    one = [("POST", "/embed", {"content": data}) for data in files]
    form = [("file", (f"{i}.png", data)) for i, data in enumerate(files)]
    answers = ask(served, *one, ("POST", "/embed", {"files": form}))
    want = served.encoder([np.array(PIL.Image.open(io.BytesIO(f))) for f in files])
    got = [a.json()["results"][0]["embedding"] for a in answers[:-1]]
    assert all(a.status_code == 200 for a in answers)
    assert tiny.worst(got, want) < 1e-5  # float32 of another batch size
    together = answers[-1].json()
    assert [r["name"] for r in together["results"]] == [f"{i}.png" for i in range(7)]
    assert tiny.worst([r["embedding"] for r in together["results"]], want) < 1e-5
    assert together["width"] == 32


def test_rollout_is_that_of_the_library(served):
    (answer,) = ask(served, ("POST", "/rollout", {"content": image()}))
    grey = np.array(PIL.Image.open(io.BytesIO(image())))
    want = rollout.attention_rollout(served.encoder.attentions([grey]))
    assert answer.json()["grid"] == [4, 4]
    assert tiny.worst(answer.json()["results"][0]["rollout"], want[0]) < 1e-5


def classifier_of(encoder):
    """A random classifier of three labels, two of them calibrated."""
    rng = np.random.default_rng(3)
    names = ("Edema", "Effusion", "Rare")
    rule = {"max_f1": {"logit": 0.0, "probability": 0.4}}
    known = {"known": 90, "positives": 40, "calibrated": True, "thresholds": rule}
    labels = {name: known | {"a": 0.7, "b": -0.2} for name in names[:2]}
    rare = {"known": 90, "positives": 0, "calibrated": False, "thresholds": {}}
    labels["Rare"] = rare | {"a": 1.0, "b": 0.0}
    kernel, bias = rng.normal(size=(32, 3)), rng.normal(size=3)
    about = {"format": 1, "chosen_on": "val", "unit": "image", "labels": labels}
    return Classifier(encoder, kernel, bias, names, calibration=about)


@pytest.fixture(scope="module")
def classifier(served):
    return classifier_of(served.encoder)


def test_predictions_are_the_classifiers(classifier, tmp_path):
    classifier.save(tmp_path / "folder")
    files = [image(i) for i in range(3)]
    form = [("file", (f"{i}.png", data)) for i, data in enumerate(files)]
    loaded = model.load(tmp_path / "folder", batch_size=4)
    (answer,) = ask(loaded, ("POST", "/predict", {"files": form}))
    found = answer.json()
    want = classifier.predict([np.array(PIL.Image.open(io.BytesIO(f))) for f in files])
    names = ["Edema", "Effusion", "Rare"]
    assert found["labels"] == names and found["calibrated"] == names[:2]
    assert found["thresholds"] == {"Edema": 0.4, "Effusion": 0.4}
    got = [[r["probabilities"][n] for n in names] for r in found["results"]]
    assert tiny.worst(got, want) < 1e-5
    for row, p in zip(found["results"], want, strict=True):
        called = {n: bool(x >= 0.4) for n, x in zip(names, p, strict=True)}
        assert row["called"] == called | {"Rare": None}


def test_views_of_an_encoder_with_view_embeddings():
    encoder = Encoder(tiny.mvmae_folder(), batch_size=2, num_devices=1)
    views = ("", "?view=lateral", "?view=LL", "?view=sideways")
    asked = [("POST", f"/embed{v}", {"content": image()}) for v in views]
    front, side, same, unknown = ask(model.Served(encoder), *asked)
    z = [a.json()["results"][0]["embedding"] for a in (front, side, same)]
    grey = np.array(PIL.Image.open(io.BytesIO(image())))
    assert tiny.worst(z, encoder([grey] * 3, ["PA", "lateral", "LL"])) < 1e-5
    assert not np.allclose(z[0], z[1], atol=1e-3)
    assert unknown.status_code == 422 and "sideways" in unknown.json()["error"]


@pytest.mark.parametrize("name", load_test.bad())
def test_bad_uploads_get_their_status_and_one_line(name, served):
    status, body = load_test.bad()[name]
    limits = Limits(bytes=load_test.MAX_BYTES)
    form = {"files": [("file", ("patient.png", body))]}
    raw, wrapped = ask(
        served,
        ("POST", "/embed", {"content": body}),
        ("POST", "/embed", form),
        limits=limits,
    )
    # An empty file in a form is a file; an empty body is none.
    for answer, want in ((raw, status), (wrapped, 422 if name == "empty" else status)):
        assert answer.status_code == want, answer.text
        (line,) = answer.json()["error"].splitlines()
        assert line and answer.headers["content-type"] == "application/json"
    assert "patient.png" in wrapped.json()["error"] or name == "too long"


def test_dicom_is_read_and_refused_above_the_limit_of_pixels(served):
    pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    from tests.input import dicom_files

    data = dicom_files.made(np.arange(600).reshape(20, 30))
    fine, large = (
        ask(served, ("POST", "/embed", {"content": data}), limits=Limits(pixels=n))[0]
        for n in (600, 599)
    )
    assert fine.status_code == 200
    assert large.status_code == 413 and "600 pixels" in large.json()["error"]


def test_dicom_without_its_extra_is_501_and_says_what_to_install(served, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom.pixels", None)
    _, data = load_test.bad()["DICOM without pixels"]
    asked = [("POST", "/embed", {"content": x}) for x in (data, image())]
    refused, fine = ask(served, *asked)
    assert (refused.status_code, fine.status_code) == (501, 200)
    (line,) = refused.json()["error"].splitlines()
    assert "needs the extra dicom" in line and "pip install" in line


def test_refusals_by_headers_and_number_of_files(served):
    many = [("file", ("x.png", image()))] * 3
    compressed = {"content": image(), "headers": {"Content-Encoding": "gzip"}}
    damaged = {"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}}
    asked = [
        ("POST", "/embed", {"files": many}),
        ("POST", "/embed", compressed),
        ("POST", "/embed", damaged),
        ("GET", "/embed", {}),
        ("POST", "/predict", {"content": image()}),
        ("GET", "/nothing", {}),
    ]
    answers = ask(served, *asked, limits=Limits(images=2))
    assert [a.status_code for a in answers] == [413, 415, 400, 405, 404, 404]
    assert all(set(a.json()) == {"error"} for a in answers)


def test_work_and_metrics_need_the_token_and_probes_do_not(served):
    def with_token(text):
        return {"content": image(), "headers": {"Authorization": text}}

    right, wrong = with_token(f"Bearer {TOKEN}"), with_token(f"Bearer {TOKEN}x")
    asked = [
        ("POST", "/embed", right),
        ("POST", "/embed", wrong),
        ("POST", "/embed", with_token(f"Basic {TOKEN}")),
        ("POST", "/embed", {"content": image()}),
        ("GET", "/metrics", {}),
        ("GET", "/health", {}),
        ("GET", "/ready", {}),
        ("GET", "/", {}),
    ]
    answers = ask(served, *asked, token=TOKEN)
    want = [200, 401, 401, 401, 401, 200, 200, 200]
    assert [a.status_code for a in answers] == want
    assert answers[1].headers["www-authenticate"] == "Bearer"


def test_another_host_name_is_refused(served):
    about = {"headers": {"Host": "elsewhere.example"}}
    asked = ("GET", "/ready", about), ("GET", "/ready", {})
    answers = ask(served, *asked, hosts=("localhost",))
    assert [a.status_code for a in answers] == [400, 200]


def test_not_ready_before_it_has_compiled(served):
    asked = [("POST", "/embed", {"content": image()}), ("GET", "/ready", {})]
    answers = ask(served, *asked, ("GET", "/health", {}), start=False)
    assert [a.status_code for a in answers] == [503, 503, 200]
    assert answers[0].headers["retry-after"] == "5"


def test_too_many_requests_are_sent_away_and_the_others_answered(served):
    asked = [("POST", "/embed", {"content": image()})] * 5
    answers = ask(served, *asked, limits=Limits(requests=2), wait=0.2)
    statuses = sorted(a.status_code for a in answers)
    assert statuses == [200, 200, 429, 429, 429]
    later = [a.headers["retry-after"] for a in answers if a.status_code == 429]
    assert all(int(seconds) >= 1 for seconds in later)


class Broken(model.Served):
    """Fails for images that are all white, and gives NaN for black ones."""

    def embed(self, rows):
        if any(row.pixels.min() == 255 for row in rows):
            raise RuntimeError("the device is gone")
        z = super().embed(rows).copy()
        z[[row.pixels.max() == 0 for row in rows]] = np.nan
        return z


def plain(level):
    PIL.Image.new("L", (9, 9), level).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def test_a_failing_batch_answers_its_requests_and_the_next_is_computed(served):
    async def run():
        service = app.Service(Broken(served.encoder), Limits(), wait=0)
        service.served.compile = lambda: None  # black images
        await service.start()
        client = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(service.application()),
            base_url="http://localhost",
        )
        async with client:
            found = [
                await client.post("/embed", content=data)
                for data in (plain(255), image(), plain(0), image())
            ]
            counts = (await client.get("/metrics")).text
        service.stop()
        return found, counts

    answers, counts = asyncio.run(asyncio.wait_for(run(), 60))
    assert [a.status_code for a in answers] == [500, 200, 500, 200]
    assert "not finite" in answers[2].json()["error"]
    assert "the device" not in answers[0].text  # that is for the log
    assert counted(counts, "pacx_failed_batches_total") == {("embed",): 1}


def counted(text, name):
    """Labels -> value of each sample of this name at /metrics."""
    return {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_metrics_count_answers_by_route_and_status_and_say_when_it_is_ready(served):
    async def run():
        service = app.Service(served, Limits())
        client = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(service.application()),
            base_url="http://localhost",
        )
        async with client:
            before = (await client.get("/metrics")).text
            await service.start()
            for data in (image(), image(1), b"no image"):
                await client.post("/embed", content=data)
            await client.get("/nothing")
            after = (await client.get("/metrics")).text
            service.draining = True
            draining = (await client.get("/metrics")).text
        service.stop()
        return before, after, draining

    before, after, draining = asyncio.run(asyncio.wait_for(run(), 60))
    ready = [counted(text, "pacx_ready") for text in (before, after, draining)]
    assert ready == [{(): 0}, {(): 1}, {(): 0}]
    assert counted(before, "pacx_requests_total") == {}
    want = {("/embed", "200"): 2, ("/embed", "415"): 1, ("other", "404"): 1}
    want[("/metrics", "200")] = 1  # the one before
    assert counted(after, "pacx_requests_total") == want
    assert counted(after, "pacx_request_seconds_count")[("/embed",)] == 3
    assert counted(after, "pacx_batch_images_sum") == {("embed",): 2}


def test_a_request_that_waits_too_long_gets_504_and_is_not_computed(served):
    computed = []

    class Slow(model.Served):
        def embed(self, rows):
            computed.append(len(rows))
            time.sleep(0.3)
            return super().embed(rows)

    slow = Slow(served.encoder)
    slow.compile = lambda: None
    asked = [("POST", "/embed", {"content": image()})] * 12
    answers = ask(slow, *asked, limits=Limits(seconds=0.5))
    statuses = [a.status_code for a in answers]
    assert set(statuses) == {200, 504}
    assert sum(computed) < 12  # those that nobody waits for


def test_an_upload_that_does_not_come_gets_408(served):
    async def slowly():
        yield image()[:100]
        await asyncio.sleep(5)
        yield image()[100:]

    asked = ("POST", "/embed", {"content": slowly()})
    (answer,) = ask(served, asked, limits=Limits(upload_seconds=0.2))
    assert answer.status_code == 408


def test_stuck_inference_is_unhealthy():
    async def run():
        go = threading.Event()
        batcher = batching.Batcher({"x": lambda rows: (go.wait(), rows)[1]}, 2, 0)
        batcher.start()
        task = asyncio.create_task(batcher.submit("x", np.zeros(1)))
        await asyncio.sleep(0.1)
        states = [batcher.stuck(60), batcher.stuck(0.01), batcher.busy]
        go.set()
        await task
        states += [batcher.stuck(0.01), batcher.busy]
        batcher.stop()
        return states

    assert asyncio.run(run()) == [False, True, True, False, False]


def test_health_is_503_while_the_worker_is_stuck_and_200_after_it(served):
    go = threading.Event()

    class Stuck(model.Served):
        def embed(self, rows):
            go.wait(30)
            return super().embed(rows)

    async def run():
        stuck = Stuck(served.encoder)
        stuck.compile = lambda: None
        service = app.Service(stuck, Limits(seconds=0.1), wait=0)
        await service.start()
        client = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(service.application()),
            base_url="http://localhost",
        )
        async with client:
            found = [await client.get("/health")]
            found.append(await client.post("/embed", content=image()))
            await asyncio.sleep(0.5)  # of a batch: more than four time-outs
            found.append(await client.get("/health"))
            go.set()
            while service.batcher.busy:
                await asyncio.sleep(0.01)
            found.append(await client.get("/health"))
        service.stop()
        return found

    answers = asyncio.run(asyncio.wait_for(run(), 60))
    assert [a.status_code for a in answers] == [200, 504, 503, 200]
    assert answers[2].json() == {"status": "inference has stopped: restart"}


def test_batches_have_one_kind_and_at_most_the_batch_size():
    seen = []

    async def run():
        work = {
            k: lambda rows, k=k: (seen.append((k, len(rows))), rows)[1] for k in "ab"
        }
        batcher = batching.Batcher(work, 3, 0.05)
        batcher.start()
        kinds = "aababaa"
        found = await asyncio.gather(
            *(batcher.submit(k, np.float64(i)) for i, k in enumerate(kinds))
        )
        batcher.stop()
        return found

    assert asyncio.run(run()) == list(range(7))
    assert seen == [("a", 3), ("b", 2), ("a", 2)]


def test_openapi_describes_every_route_and_pages_load_nothing_from_elsewhere(served):
    paths = list(app.PAGES)
    asked = [("GET", path, {}) for path in ("/openapi.json", *paths)]
    about, *pages = ask(served, *asked, token=TOKEN)
    described = about.json()
    assert described["openapi"].startswith("3.1")
    assert set(described["paths"]) == {
        "/embed", "/rollout", "/health", "/ready", "/metrics"
    }  # fmt: skip
    assert described["security"] == [{"token": []}]
    for path, page in zip(paths, pages, strict=True):
        assert page.status_code == 200
        assert "http://" not in page.text and "https://" not in page.text, path
        assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "not a medical device" in pages[0].text.lower()


def test_an_unknown_parameter_is_refused_by_name(served):
    request = ("POST", "/embed?rule=max_f1", {"content": image()})
    (answer,) = ask(served, request)
    assert answer.status_code == 400
    assert answer.json() == {"error": "unknown parameter 'rule': there is view"}


def test_a_png_without_its_header_is_damaged_and_not_large(served):
    data = b"\x89PNG\r\n\x1a\n" + b"\xff" * 200
    (answer,) = ask(served, ("POST", "/embed", {"content": data}))
    assert answer.status_code == 422
