"""docs/troubleshooting.md quotes messages that the source has."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
VALUE = "\0"  # what a message fills in


def strings():
    """The texts of the source, those of one expression joined."""
    for folder in ("pacx_jax", "data"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
                elif isinstance(node, ast.JoinedStr):
                    parts = (getattr(part, "value", None) for part in node.values)
                    yield "".join(p if isinstance(p, str) else VALUE for p in parts)


def quoted():
    """The messages in the first columns of the page's tables."""
    rows = re.findall(r"^\| `(.+?)` \|", PAGE, flags=re.MULTILINE)
    assert len(rows) > 40
    return rows


def test_every_quoted_message_is_in_the_source():
    found = sorted(set(strings()), key=len)

    def has(message):
        parts = [re.escape(part) for part in message.split("…")]
        pattern = re.compile(f"[^\\n]*?{VALUE}[^\\n]*?".join(parts))
        return any(pattern.search(text) for text in found)

    missing = [message for message in quoted() if not has(message)]
    assert not missing, "these messages are no longer said:\n" + "\n".join(missing)
