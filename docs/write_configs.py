"""Writes docs/configs.md from the recipes: python docs/write_configs.py

A field's meaning is the comment beside it in the recipe, or in the recipe or base that
it derives from.
"""

import importlib
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from configs import base  # noqa: E402

PAGE = ROOT / "docs" / "configs.md"
RECIPES = sorted(
    p.stem for p in (ROOT / "configs").glob("[!_]*.py") if p.stem != "base"
)
ASSIGNED = re.compile(r"^ +([cm])\.([\w., ]+?) = .*?(?:  # (.+))?$")
HEAD = """# Fields of a run

Written from the recipes by `python docs/write_configs.py`; a test compares. Any field
is a flag: `--config.optim.peak_lr=1e-4`. Presets are arguments of a recipe, such as
`--config=configs/mae_vitb16.py:reference`: `paper` follows the paper, `reference` the
authors' code ([choices.md](choices.md) says where they differ), `runlocal` is a small
run on simulated patients. `D` numbers are rows of that page.
"""


def flat(tree, prefix=""):
    """Dotted names and values of a nested config."""
    found = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def comments(name):
    """What the source of a recipe, and of those it imports, says of its fields."""
    text = (ROOT / "configs" / f"{name}.py").read_text(encoding="utf-8")
    parents = re.findall(r"^from configs import (.+)$", text, flags=re.MULTILINE)
    found = {}
    for parent in ", ".join(parents).split(", ") if parents else ():
        found |= comments(parent)
    own = {}
    for variable, fields, comment in re.findall(ASSIGNED.pattern, text, re.MULTILINE):
        for field in fields.split(", "):
            field = field.removeprefix("c.")
            if comment:  # the first, as presets follow
                own.setdefault(
                    f"modalities.*.{field}" if variable == "m" else field, comment
                )
    return found | own


def meaning(field, known):
    any_modality = re.sub(r"^modalities\.\w+\.", "modalities.*.", field)
    return known.get(field, known.get(any_modality, "")).replace("|", "\\|")


def code(value):
    text = f"`{value!r}`"
    return text if "|" not in text else f"<code>{value!r}</code>".replace("|", "&#124;")


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def section(name, common):
    """One recipe: its own fields, and those that it sets otherwise than the base."""
    module = importlib.import_module(f"configs.{name}")
    about, _, rest = module.__doc__.partition("\n\n")
    values = {
        arg: flat(module.get_config(arg).to_dict()) for arg in ("", *base.PRESETS)
    }
    known, rows, used = comments(name), [], []
    ours = values[""]
    for arg in base.PRESETS:
        if any(values[arg][f] != ours[f] for f in ours):
            used.append(arg)
    for field, value in ours.items():
        if field in ("name", "objective"):
            continue
        others = [values[arg][field] for arg in used]
        if field not in common or any(v != common[field] for v in (value, *others)):
            shown = ["" if v == value else code(v) for v in others]
            rows.append([f"`{field}`", code(value), *shown, meaning(field, known)])
    head = ["field", "default", *(f"`{arg}`" for arg in used), "meaning"]
    intro = f"{about} Objective `{ours['objective']}`."
    return f"## {name}\n\n{' '.join(intro.split())}\n\n{table(head, rows)}\n"


def page():
    common, known = flat(base.get_config().to_dict()), comments("base")
    rows = [[f"`{f}`", code(v), meaning(f, known)] for f, v in common.items()]
    every = f"## Every recipe\n\n{table(['field', 'default', 'meaning'], rows)}\n"
    return "\n".join([HEAD, every, *(section(name, common) for name in RECIPES)])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
