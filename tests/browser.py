"""Pages as a reader meets them: their HTML, in headless Chromium, and by axe-core."""

from __future__ import annotations

import base64
import html
import html.parser
import json
import os
import pathlib
import queue
import re
import shutil
import subprocess
import threading
import zlib

import pytest

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
# Of a script that has `answers`: what that returns comes in lines of the log. It may
# wait `until` something is so, and ask for axe's `problems` where that is on the page.
REPORT = """
async function until(done) {
  const end = Date.now() + 60000;
  while (!done()) {
    if (Date.now() > end) throw new Error(document.body.innerText.slice(0, 500));
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
const problems = async () => (await axe.run(document)).violations.map(
  (v) => [v.id, v.nodes.map((n) => n.html.slice(0, 300) + n.failureSummary)]);
addEventListener("DOMContentLoaded", () => {
  answers().catch((e) => ({failed: e.message})).then((result) => {
    const bytes = new TextEncoder().encode(JSON.stringify(result));
    const text = btoa([...bytes].map((b) => String.fromCharCode(b)).join(""));
    for (let i = 0; i < text.length; i += 2000) {
      console.log(`PACX ${text.slice(i, i + 2000)} `);
    }
    console.log("PACX . ");
  });
});
"""
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
    file = folder / "opened.html"
    file.write_text(page)
    flags = (*flags, "--virtual-time-budget=60000")
    done = subprocess.run(
        [*_chromium(folder), *flags, file.as_uri()],
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return done.stdout.decode()


def answered(address: str, folder: pathlib.Path, *flags: str) -> dict:
    """What `answers` of a page that has REPORT returns, once it is opened.

    Skips the test where there is no Chromium.
    """
    command = [*_chromium(folder), *flags, "--enable-logging=stderr", address]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    lines = queue.Queue()
    thread = threading.Thread(target=lambda: [*map(lines.put, process.stderr)])
    thread.start()
    parts, said = [], []
    try:
        while parts[-1:] != ["."]:
            said.append(lines.get(timeout=90))
            parts += re.findall(r"PACX (\S+) ", said[-1])
    except queue.Empty:
        raise AssertionError("".join(said[-20:])) from None
    finally:
        process.terminate()
        process.wait(30)
        thread.join(30)
        process.stderr.close()
    found = json.loads(base64.b64decode("".join(parts[:-1])))
    assert "failed" not in found, found
    return found


def _chromium(folder: pathlib.Path) -> list[str]:
    """The command without its address."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium on PATH: apt-get install chromium")
    return [browser, *FLAGS, f"--user-data-dir={folder / 'profile'}"]


def axe() -> str:
    """axe-core's script; skips the test where PACX_AXE, its path, is not set."""
    path = os.environ.get("PACX_AXE")
    if not path:
        pytest.skip("PACX_AXE names no axe.min.js (.ci/run fetches it)")
    return pathlib.Path(path).read_text()


def violations(page: str, folder: pathlib.Path, *flags: str) -> list:
    """What axe-core finds wrong with a page: rules, and the elements that break them.

    Skips the test where PACX_AXE, the path of axe.min.js, is not set.
    """
    code = axe().replace("</script", "<\\/script")
    found = dom(page, folder, f"{code}\n{AXE}", *flags)
    told = re.search(r'<pre id="told">(.*?)</pre>', found, re.DOTALL)
    return json.loads(html.unescape(told[1]))
