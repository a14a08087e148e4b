"""For mkdocstrings: the code below "Example:" in a docstring is shown as code."""

import re
import textwrap

import griffe

EXAMPLE = re.compile(r"^Example:\n((?: +.*\n?|\n)+)", flags=re.MULTILINE)


def fenced(match):
    code = textwrap.dedent(match[1]).strip()
    return "Example:\n" + textwrap.indent(f"```python\n{code}\n```\n", "    ")


class Examples(griffe.Extension):
    """Fences the examples of every docstring."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(fenced, obj.docstring.value)
