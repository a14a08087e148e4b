"""Pages as a reader meets them: their HTML, in headless Chromium, and by axe-core."""

from __future__ import annotations

import html
import html.parser
import json
import os
import pathlib
import re
import shutil
import subprocess
import zlib

import pytest

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--virtual-time-budget=60000"
).split()
DARK = "--blink-settings=preferredColorScheme=0"
AXE = """
axe.run(document).then(found => {
  const told = document.createElement("pre");
  told.id = "told";
  told.textContent = JSON.stringify(found.violations.map(
    v => [v.id, v.nodes.map(n => n.html.slice(0, 300) + n.failureSummary)]));
  document.body.append(told);
});
"""


class Audit(html.parser.HTMLParser):
    """Collects what accessibility and self-containment ask about."""

    def __init__(self):
        super().__init__()
        self.seen, self.bad, self.open, self.ids = [], [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.seen.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        for key in ("src", "href"):
            if not values.get(key, "data:").startswith(("data:", "#")):
                self.bad.append((tag, values[key]))
        if tag == "img" and not values.get("alt"):
            self.bad.append("image without alternative text")
        if values.get("role") == "img" and not values.get("aria-label"):
            self.bad.append("chart without alternative text")
        if tag == "th" and "scope" not in values:
            self.bad.append("header cell without scope")

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            self.bad.append(f"{tag} closes another element")


def audited(page: str) -> Audit:
    """The audit of a page that is well-formed, accessible and self-contained."""
    audit = Audit()
    audit.feed(page)
    assert audit.bad == [] and audit.open == []
    assert len(set(audit.ids)) == len(audit.ids)
    assert "http" not in page and "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    return audit


def dom(page: str, folder: pathlib.Path, script: str = "", *flags: str) -> str:
    """The page's elements in Chromium, after its scripts and `script` have run.

    Skips the test where there is no Chromium.
    """
    page = page.replace("</body>", f"<script>{script}</script></body>")
    return _opened(page, folder, "--dump-dom", *flags)


def printed(page: str, folder: pathlib.Path, *flags: str) -> list[bytes]:
    """The drawing commands of each sheet, as a reader's printer would get them.

    Skips the test where there is no Chromium.
    """
    file = folder / "printed.pdf"
    _opened(page, folder, f"--print-to-pdf={file}", "--no-pdf-header-footer", *flags)
    pdf, stream = file.read_bytes(), rb"<<[^>]*>> stream\n(.*?)\nendstream"
    objects = dict(re.findall(rb"\n(\d+) 0 obj\n" + stream, pdf, re.DOTALL))
    return [zlib.decompress(objects[n]) for n in re.findall(rb"/Contents (\d+)", pdf)]


def _opened(page: str, folder: pathlib.Path, *flags: str) -> str:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium on PATH: apt-get install chromium")
    file = folder / "opened.html"
    file.write_text(page)
    profile = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run(
        [browser, *FLAGS, *flags, profile, file.as_uri()],
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return done.stdout.decode()


def violations(page: str, folder: pathlib.Path, *flags: str) -> list:
    """What axe-core finds wrong with a page: rules, and the elements that break them.

    Skips the test where PACX_AXE, the path of axe.min.js, is not set.
    """
    axe = os.environ.get("PACX_AXE")
    if not axe:
        pytest.skip("PACX_AXE names no axe.min.js (.ci/run fetches it)")
    code = pathlib.Path(axe).read_text().replace("</script", "<\\/script")
    found = dom(page, folder, f"{code}\n{AXE}", *flags)
    told = re.search(r'<pre id="told">(.*?)</pre>', found, re.DOTALL)
    return json.loads(html.unescape(told[1]))
