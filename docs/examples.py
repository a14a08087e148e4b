"""For mkdocstrings: what docstrings set off by indentation is shown as it stands."""

import re
import textwrap

import griffe

EXAMPLE = re.compile(r"^Example:\n((?: +.*\n?|\n)+)", flags=re.MULTILINE)
INDENTED = re.compile(r"(?<=\n\n)((?:  .*(?:\n|$)|\n(?=  ))+)")


def fenced(text, language, indent=""):
    code = f"```{language}\n{textwrap.dedent(text).strip()}\n```\n"
    return textwrap.indent(code, indent)


class Examples(griffe.Extension):
    """Fences the examples of every docstring, and the tables of modules'."""

    def on_object(self, *, obj, **kwargs):
        if not obj.docstring:
            return
        text = obj.docstring.value
        if obj.is_module:
            text = INDENTED.sub(lambda m: fenced(m[1], "text"), text)
        obj.docstring.value = EXAMPLE.sub(
            lambda m: "Example:\n" + fenced(m[1], "python", "    "), text
        )
