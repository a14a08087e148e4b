"""The command line of a run: flags that set a recipe's fields, each error one line."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags import tuple_parser

from pacx_jax import cli
from pacx_jax.errors import PacxError
from pacx_jax.run import clone, fingerprints

LARGEST = 2**31  # whole numbers are below it, as steps are int32


class _Values(flags.ArgumentParser):
    """Reads the values of one type; what it raises says what to give."""

    def __init__(self, read: Callable[[str], object], wanted: str):
        self._read, self._wanted = read, wanted

    def parse(self, argument):
        if not isinstance(argument, str):  # a recipe's own value
            return argument
        try:
            return self._read(argument)
        except (ValueError, KeyError):
            raise ValueError(f"give {self._wanted}") from None


class _Tuples(tuple_parser.TupleParser):
    """Nothing is the empty tuple."""

    def parse(self, argument):
        return () if argument == "" else super().parse(argument)


def number(text: str) -> float:
    """A float that is neither infinite nor NaN."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def whole(text: str) -> int:
    """An integer, also as 1e3 or 1_000."""
    value = number(text)
    if value % 1 or abs(value) >= LARGEST:
        raise ValueError(text)
    return int(value)


_TRUTH = dict.fromkeys(("true", "t", "yes", "y", "on", "1"), True)
_TRUTH |= dict.fromkeys(("false", "f", "no", "n", "off", "0"), False)
for kind, parser in {
    int: _Values(whole, "a whole number below 2^31, such as 1000 or 1e3"),
    float: _Values(number, "a number, such as 0.001 or 1e-3"),
    bool: _Values(lambda text: _TRUTH[text.lower()], "true or false"),
    tuple: _Tuples(),
}.items():
    config_flags.register_flag_parser_for_type(kind, parser)


def parse(argv: list[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """absl's parsing, whatever it raises made one line."""
    for argument in argv[1:]:
        if any("\ud800" <= c <= "\udfff" for c in argument):
            raise PacxError(f"flag {argument}: it is not UTF-8")
    argv = _with_recipe([argv[0], *map(cli.at_home, argv[1:])])
    for argument in argv:
        name, _, recipe = argument.partition("=")
        if name == "--config":
            _check_fields(argv, recipe, values)
    try:
        return values(argv)
    except ImportError as e:
        raise PacxError(f"{e}: what --config imports is not there") from None
    except (flags.Error, LookupError, AttributeError, TypeError, ValueError) as e:
        text = str(e.args[0]) if e.args else type(e).__name__
        if "Traceback" in text:  # of a recipe's own error: what it said stands last
            text = text.strip().splitlines()[-1].partition(": ")[2]
        raise PacxError(" ".join(text.split())) from None


def _with_recipe(argv: list[str]) -> list[str]:
    """The arguments with the recipe's file after --config=."""
    found, rest = [], iter(argv)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            value = value if equals else next(rest, "")
            argument = f"--config={clone.recipe(value)}"
        found.append(argument)
    return found


def _check_fields(argv: list[str], recipe: str, values: flags.FlagValues) -> None:
    """PacxError for a field that the recipe lacks."""
    file = recipe.partition(":")[0]
    asked = [re.match(r"--?(?:no)?config\.([^=]*)", argument) for argument in argv]
    try:
        known = fingerprints.flat(values["config"].parser.parse(recipe).to_dict())
    except Exception:  # the recipe's own, which is raised again where it counts
        return
    for name in [found[1] for found in asked if found]:
        if name in known:
            continue
        within = [field for field in known if field.startswith(f"{name}.")]
        if within:
            raise PacxError(
                f"--config.{name} has fields of its own: set one of them, such as "
                f"--config.{within[0]}"
            )
        near = nearest(name, list(known))
        hint = f"did you mean {near}?" if near else "its base, configs/base.py, neither"
        raise PacxError(f"--config.{name}: {file} has no such field: {hint}")


def nearest(name: str, known: list[str]) -> str:
    """The known dotted name that was meant: one with the same words, or letters."""

    def words(dotted: str) -> set[str]:
        return set(dotted.rpartition(".")[2].split("_"))

    name = name.replace("learning_rate", "lr")
    candidates = [k for k in known if words(name) <= words(k)] or known
    cutoff = 0.7 if candidates is known else 0.0
    return next(iter(difflib.get_close_matches(name, candidates, 1, cutoff)), "")
