"""The pages in Chromium, against a service on a real socket of 127.0.0.1."""

import asyncio
import base64
import io

import numpy as np
import PIL.Image
import pytest
from starlette.responses import Response
from starlette.routing import Route

from pacx_jax.encoders.xray_encoder import Encoder
from pacx_jax.serving import app, model
from tests import browser, tiny
from tests.serving.test_app import classifier_of, image
from tests.serving.test_server import serve

# A reader sends two files to each route. Axe looks at what stands there then.
SEND = """
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
READ = """
async function answers() {
  const routes = document.getElementById("routes");
  await until(() => routes.children.length);
  const loaded = performance.getEntriesByType("resource").map(({name}) => name);
  return {routes: routes.innerText, loaded, problems: await problems()};
}
"""


def opened(served, path, script, folder, monkeypatch, *flags):
    """What `answers` of a script gives on a page of the service, which has axe too."""
    made, name = app.Service.application, app.PAGES[path].replace(".html", ".js")

    def application(service):
        """The service's own, and the page with a script more, under its headers."""
        found = made(service)
        (page,) = (r for r in found.routes if r.path == path)

        async def asking(request):
            body = (await page.endpoint(request)).body.decode()
            more = "".join(f'<script src="{x}" defer></script>' for x in scripts)
            own = f'<script src="{name}" defer></script>'
            assert own in body
            return Response(body.replace(own, own + more), media_type="text/html")

        def of(code):
            return lambda request: Response(code, media_type="text/javascript")

        scripts = {"axe.js": browser.axe(), "ask.js": f"{script}\n{browser.REPORT}"}
        found.routes.append(Route("/asking", asking))
        found.routes.extend(Route(f"/{x}", of(code)) for x, code in scripts.items())
        return found

    monkeypatch.setattr(app.Service, "application", application)

    async def talk(port, service):
        address = f"http://127.0.0.1:{port}/asking"
        found = await asyncio.to_thread(browser.answered, address, folder, *flags)
        return found | {"host": f"http://127.0.0.1:{port}/"}

    return serve(served, talk)


def test_the_page_sends_files_shows_what_came_and_is_accessible(tmp_path, monkeypatch):
    encoder = Encoder(tiny.folder("vit"), batch_size=1, num_devices=1)
    classifier = classifier_of(encoder)
    text = base64.b64encode(image()).decode()
    script = f"const IMAGE = '{text}';\n{SEND}"
    served = model.Served(encoder, classifier)
    found = opened(served, "/", script, tmp_path, monkeypatch)
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


@pytest.mark.parametrize("flags", [(), (browser.DARK,)], ids=["light", "dark"])
def test_the_page_of_the_routes_is_accessible_and_loads_its_own_files_alone(
    tmp_path, monkeypatch, flags
):
    encoder = Encoder(tiny.mvmae_folder(), batch_size=1, num_devices=1)
    served = model.Served(encoder)
    served.compile = lambda: None
    found = opened(served, "/docs", READ, tmp_path, monkeypatch, *flags)
    for told in ("POST /embed", "Query view: ", "GET /metrics", "429"):
        assert told in found["routes"]
    assert {"docs.js", "openapi.json"} <= {x.split("/")[-1] for x in found["loaded"]}
    assert all(x.startswith(found["host"]) for x in found["loaded"]), found["loaded"]
    assert found["problems"] == []
