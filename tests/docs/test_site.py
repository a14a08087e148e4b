"""The site: links that lead somewhere, pages that are listed, what is generated."""

import importlib.util
import os
import pathlib
import re
import shutil

import pytest

from tests import browser

ROOT = pathlib.Path(__file__).resolve().parents[2]


def program(name):
    """A program of docs/, which is no package."""
    path = ROOT / "docs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"docs_{name}", path)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


# A reader types a word into the search, and takes what it finds.
SEARCH = """
async function answers() {
  const query = document.querySelector("[data-md-component=search-query]");
  const links = () => [...document.querySelectorAll(".md-search-result__link")];
  await until(() => !query.disabled);
  query.focus();
  query.value = "onnxruntime-web";
  query.dispatchEvent(new Event("keyup", {bubbles: true}));
  await until(() => links().length);
  const loaded = performance.getEntriesByType("resource").map(({name}) => name);
  return {found: links().map(({href}) => href), loaded};
}
"""
hooks = program("hooks")
PAGES = hooks.pages()
NAVIGATION = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    found = hooks.links(PAGES[page], page)
    assert not [file for file in found if not (ROOT / file).is_file()]


def test_links_become_those_of_the_site():
    moved = hooks.moved("[a](../README.md) `[b](../x.md)` [c](#d)", "method.md")
    assert moved == "[a](README.md) `[b](../x.md)` [c](#d)"
    moved = hooks.moved("[a](../data/cohort/README.md#files)", "method.md")
    assert moved == "[a](data/cohort/README.md#files)"
    text = "[a](../docs/method.md) [b](https://a.org/b.py)\n```\n[c](../x.md)\n```\n"
    moved = hooks.moved(text, "data/README.md")
    assert moved == text.replace("../docs/method.md", "../method.md")
    moved = hooks.moved("[a](../launch/compare_views.py)", "demo.md")
    assert moved == "[a](launch/compare_views.py.md)"


def test_notebooks_become_pages_with_their_outputs():
    page = PAGES["docs/notebooks/quickstart.ipynb"]
    assert page.startswith("# Quickstart\n")
    assert "~~~~python\nfrom pacx_jax import load_encoder" in page
    assert "~~~~text\none row a film: (160, 32) float32" in page
    assert "![](data:image/png;base64," in PAGES["docs/notebooks/interpret.ipynb"]


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"^ +- (?:.+: )?(\S+\.md)$", NAVIGATION, re.MULTILINE))
    assert {hooks.site_uri(page) for page in PAGES} == listed


def test_the_fields_of_runs_are_those_of_the_recipes():
    said = (ROOT / "docs/configs.md").read_text(encoding="utf-8")
    assert said == program("write_configs").page(), "python docs/write_configs.py"


def test_every_field_of_a_run_has_a_meaning():
    said = (ROOT / "docs/configs.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\S+`) \|.*\|(.*)\|$", said, re.MULTILINE)
    assert len(rows) > 500
    empty = sorted({field for field, about in rows if not about.strip()})
    assert not empty, f"comments in configs/*.py that are missing: {empty}"


def test_versions_elsewhere_are_those_of_the_package_and_the_lock():
    def version(file, pattern):
        return re.search(pattern, (ROOT / file).read_text(encoding="utf-8"), re.M)[1]

    ours = version("pacx_jax/__init__.py", r'^__version__ = "(.+)"')
    assert version("CITATION.cff", r"^version: (.+)$") == ours
    assert version("CHANGELOG.md", r"^## ([0-9.]+)") == ours
    ruff = version("requirements.lock", r"^ruff==([0-9.]+)")
    assert version(".pre-commit-config.yaml", r"rev: v([0-9.]+)") == ruff
    assert version("docs/requirements.lock", r"^ruff==([0-9.]+)") == ruff


def test_the_search_of_the_site_works_from_disk(tmp_path):
    if not (built := os.environ.get("PACX_SITE")):
        pytest.skip("PACX_SITE names no built site (.ci/run builds it)")
    site = shutil.copytree(built, tmp_path / "site")
    page = (site / "index.html").read_text(encoding="utf-8")
    script = f"<script>{SEARCH}{browser.REPORT}</script></body>"
    (site / "asked.html").write_text(page.replace("</body>", script), encoding="utf-8")
    found = browser.answered((site / "asked.html").as_uri(), tmp_path)
    pages = [re.split("[#?]", href)[0] for href in found["found"]]
    assert (site / "web.html").as_uri() in pages
    assert found["loaded"] == []  # by any address that is none of a file
