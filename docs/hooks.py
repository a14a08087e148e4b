"""What the site has beside docs/: READMEs, notebooks, and source that pages link to.

Pages link to files as they lie in the repository, so that links work where the
Markdown is read as it is. Here a link to a file goes to the page that shows it:

  docs/method.md            method.md
  data/README.md            data/README.md (MkDocs makes an index.html of it)
  docs/notebooks/own.ipynb  notebooks/own.md, its cells and outputs
  pacx_jax/input/dicom.py   pacx_jax/input/dicom.py.md, its text

A link to a file that does not exist is a warning, which `mkdocs build --strict` ends
on; so is a page that would load anything from elsewhere.
"""

import json
import logging
import pathlib
import posixpath
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]
LOG = logging.getLogger("mkdocs.hooks")
OUTSIDE = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "data/**/README.md")
INSIDE = ("docs/**/*.md", "docs/**/*.ipynb")
LINK = re.compile(r"(?<=\]\()(?!#)[^)\s#]+")
LOADED = re.compile(r"<(?:script|img|iframe|link)\b[^>]*(?:src|href)=\"?(?:https?:)?//")
CANONICAL = re.compile(r"<link[^>]*rel=\"?canonical[^>]*>")


def prose(markdown):
    """The parts of a page outside of code, and the code, in turns."""
    fence = r"^(?:```|~~~~)"
    code = rf"({fence}.*?{fence}$|`[^`\n]+`)"
    return re.split(code, markdown, flags=re.MULTILINE | re.DOTALL)


def resolve(link, path):
    """The file of the repository that a link of a file there means, if it is one."""
    if not re.match(r"[a-z]+:", link):
        return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def links(markdown, path):
    """The files that the links of a page mean."""
    found = [link for part in prose(markdown)[::2] for link in LINK.findall(part)]
    return [file for link in found if (file := resolve(link, path))]


def site_uri(path):
    """The site's source of the page that shows a file of the repository."""
    if path.endswith(".ipynb"):
        path = path.removesuffix(".ipynb") + ".md"
    elif path.endswith(".py"):
        path += ".md"
    return path.removeprefix("docs/")


def in_repository(uri):
    """The file of the repository that a page of the site shows."""
    inside = f"docs/{uri}", f"docs/{uri.removesuffix('.md')}.ipynb"
    return next((path for path in inside if (ROOT / path).is_file()), uri)


def source(path):
    """A page with the text of a source file, left out of the search."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return f"---\nsearch: {{exclude: true}}\n---\n# {path}\n\n~~~~python\n{text}~~~~\n"


def output(cell_output):
    """A notebook's output as Markdown: its picture, else its text."""
    data = cell_output.get("data", {})
    if "image/png" in data:
        return f"![](data:image/png;base64,{''.join(data['image/png']).strip()})"
    text = "".join(cell_output.get("text", data.get("text/plain", "")))
    return f"~~~~text\n{text.rstrip()}\n~~~~"


def notebook(path):
    """A notebook's cells and their outputs as a page."""
    parts = []
    for cell in json.loads((ROOT / path).read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
        else:
            parts += [f"~~~~python\n{text}\n~~~~", *map(output, cell["outputs"])]
    name = posixpath.basename(path)
    return "\n\n".join([*parts, f'<a href="{name}" download>Download {name}</a>', ""])


def pages():
    """What the site shows as pages, by its path in the repository: its Markdown."""
    found = {p for pattern in (*OUTSIDE, *INSIDE) for p in ROOT.glob(pattern)}
    paths = sorted(p.relative_to(ROOT).as_posix() for p in found)
    return {path: markdown_of(path) for path in paths}


def markdown_of(path):
    """A page's Markdown."""
    if path.endswith(".ipynb"):
        return notebook(path)
    return (ROOT / path).read_text(encoding="utf-8")


def moved(markdown, uri):
    """A page's text, with links to the site's pages in place of the repository's."""
    path = in_repository(uri)

    def link(match):
        file = resolve(match[0], path)
        if file is None:
            return match[0]
        if not (ROOT / file).is_file():
            LOG.warning("%s links to %s: no such file", path, match[0])
        return posixpath.relpath(site_uri(file), posixpath.dirname(uri) or ".")

    parts = prose(markdown)
    parts[::2] = [LINK.sub(link, part) for part in parts[::2]]
    return "".join(parts)


def on_files(files, config):
    """Adds what lies outside of docs/, notebooks, and source that pages link to."""
    from mkdocs.structure.files import File

    def add(uri, content):
        files.append(File.generated(config, uri, content=content))

    texts = pages()
    for path, text in texts.items():
        if not path.startswith("docs/") or path.endswith(".ipynb"):
            add(site_uri(path), text)
    linked = {file for path, text in texts.items() for file in links(text, path)}
    for path in sorted(linked):
        if path.endswith(".py") and (ROOT / path).is_file():
            add(site_uri(path), source(path))
    return files


def on_page_markdown(markdown, page, config, files):
    return moved(markdown, page.file.src_uri)


def on_post_page(html, page, config):
    if LOADED.search(CANONICAL.sub("", html)):
        LOG.warning("%s would load something from elsewhere", page.file.src_uri)
    return html
