"""The upload page in Chromium, against a service on a real socket of 127.0.0.1."""

import asyncio
import base64
import io

import numpy as np
import PIL.Image
from starlette.responses import Response
from starlette.routing import Route

from pacx_jax.encoders.xray_encoder import Encoder
from pacx_jax.serving import app, model
from tests import browser, tiny
from tests.serving.test_app import classifier_of, image
from tests.serving.test_server import serve

# A reader sends two files to each route. Axe looks at what stands there then.
SEND = """
async function until(done) {
  const end = Date.now() + 60000;
  while (!done()) {
    if (Date.now() > end) throw new Error(`state: ${at("state").textContent}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
const problems = async () => (await axe.run(document)).violations.map(
  (v) => [v.id, v.nodes.map((n) => n.html.slice(0, 300) + n.failureSummary)]);
async function answers() {
  await until(() => at("work").options.length);
  const works = [...at("work").options].map((option) => option.value);
  const held = new DataTransfer();
  const bytes = Uint8Array.from(atob(IMAGE), (c) => c.charCodeAt(0));
  held.items.add(new File([bytes], "good.png"));
  held.items.add(new File(["no image"], "bad.txt"));
  at("files").files = held.files;
  const found = {works, axe: {empty: await problems()}};
  for (const work of works) {
    at("state").textContent = "";
    at("work").value = work;
    at("form").requestSubmit();
    await until(() => at("state").textContent === "2 done");
    found[work] = [...at("results").firstChild.rows].map(({cells: [name, told]}) => [
      name.textContent, told.className, told.innerText,
      told.querySelectorAll("canvas").length]);
    found.axe[work] = await problems();
  }
  return found;
}
"""


def test_the_page_sends_files_shows_what_came_and_is_accessible(tmp_path, monkeypatch):
    encoder = Encoder(tiny.folder("vit"), batch_size=1, num_devices=1)
    classifier = classifier_of(encoder)
    text = base64.b64encode(image()).decode()
    script = f"const IMAGE = '{text}';\n{SEND}\n{browser.REPORT}"
    made = app.Service.application

    def application(service):
        """The service's own, and the page with a script more, under its headers."""
        found = made(service)
        (page,) = (r for r in found.routes if r.path == "/")

        async def asking(request):
            body = (await page.endpoint(request)).body.decode()
            more = "".join(f'<script src="{x}" defer></script>' for x in scripts)
            own = '<script src="upload.js" defer></script>'
            assert own in body
            return Response(body.replace(own, own + more), media_type="text/html")

        def of(code):
            return lambda request: Response(code, media_type="text/javascript")

        scripts = {"axe.js": browser.axe(), "ask.js": script}
        found.routes.append(Route("/asking", asking))
        found.routes.extend(Route(f"/{x}", of(code)) for x, code in scripts.items())
        return found

    monkeypatch.setattr(app.Service, "application", application)

    async def talk(port, service):
        address = f"http://127.0.0.1:{port}/asking"
        return await asyncio.to_thread(browser.answered, address, tmp_path)

    found = serve(model.Served(encoder, classifier), talk)
    assert found["works"] == ["embed", "rollout", "predict"]
    for work in found["works"]:
        (name, told, shown, drawn), bad = found[work]
        assert (name, told, drawn) == ("good.png", "", work == "rollout"), shown
        assert bad[:2] == ["bad.txt", "error"] and bad[2].startswith("415: "), bad
    assert found["embed"][0][2].startswith("32 numbers: ")
    (p,) = classifier.predict([np.array(PIL.Image.open(io.BytesIO(image())))])
    rows = found["predict"][0][2].splitlines()
    for row, label, value in zip(rows, classifier.labels, p, strict=True):
        assert row.split("\t")[:2] == [label, f"{value:.3f}"]
    assert found["axe"] == dict.fromkeys(("empty", *found["works"]), [])
