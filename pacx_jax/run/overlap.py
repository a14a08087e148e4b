"""Whose X-rays an encoder has learnt from, and whether a probe is tested on them.

  WORKDIR/patients.json  the runs behind this encoder and this one, and their training
                         patients as keyed hashes
  WORKDIR/patients.key   the key, 32 random bytes; readable by its owner alone
  WORKDIR/overlap.json   of a probe: how many of its held-out patients are among them

A hash is HMAC-SHA256 of namespace/id (see input/patients.py), cut to 128 bits. A run
takes over the key and the list of the run that it starts from (`config.model_init`), so
that the runs before it may be moved or deleted. What this protects against: who has the
list without the key cannot tell whether a patient is in it, nor link it to the list of
another project. What not: who has both can try all ids, of which there are few (those
of MIMIC have eight digits). So give a workdir away without its key; an exported encoder
has neither.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import pathlib
import secrets

import jax

from pacx_jax import files
from pacx_jax.errors import PacxError
from pacx_jax.input import mixture, patients, sources
from pacx_jax.stores import staging, urls
from pacx_jax.stores.failures import Missing

PATIENTS, KEY, OVERLAP = "patients.json", "patients.key", "overlap.json"
FORMAT = 1
PROBES = ("classify", "segment")  # objectives whose held-out patients must be unseen


@dataclasses.dataclass(frozen=True)
class Chain:
    """The runs behind an encoder, first to last.

    Attributes:
      key: of the hashes; None where there are none.
      runs: {"run", "objective", "namespace", "data", "patients", "hashes"} each, or
        {"run", "unknown"} with the reason.
    """

    key: bytes | None = None
    runs: tuple[dict, ...] = ()


def account(config, workdir: str, train: sources.Source) -> None:
    """Before training: refuses a probe of seen patients, and lists the run's own.

    Args:
      train: the split that the run trains on.

    Raises:
      PacxError: patients of the probe's other splits were in the encoder's training,
        or are in another set's training split of its mixture, and
        `config.data.allow_overlap` is not set.
    """
    chain, held_out = behind(start_of(config)), [config.data.val_split]
    if config.objective in PROBES:
        held_out = [s for s in sources.splits(config.data) if s != train.split]
        check(config, workdir, held_out, chain)
    _check_sets(config, train, held_out)
    if jax.process_index() == 0 and not is_listed(config, workdir, train):
        _list_patients(config, workdir, train, chain)


def check_evaluation(config, workdir: str, split: str) -> None:
    """Before measuring a finished probe on `split`: the same refusal."""
    if config.objective in PROBES and split != config.data.train_split:
        own = read(pathlib.Path(workdir))
        chain = Chain(own.key, own.runs[:-1]) if own else behind(start_of(config))
        check(config, workdir, [split], chain)
        _check_sets(config, _open(config, config.data.train_split), [split])


def _check_sets(config, train, held_out: list[str]) -> None:
    """Tells of patients that a mixture trains on and holds out; refuses it to probes.

    Each set keeps its own splits apart, which those of one archive draw differently.
    """
    if not mixture.parts(config.data):
        return
    seen = _named(train)
    for source in filter(None, (_open(config, split) for split in held_out)):
        known = _named(source)
        shared = len(known & seen)
        text = f"{shared} of {len(known)} {source.split} patients are in {train.split}"
        text = f"{config.data.path}: {text} too, by another set of their namespace"
        if shared and jax.process_index() == 0:
            print(f"{config.name}: {text}", flush=True)
        if shared and config.objective in PROBES and not config.data.allow_overlap:
            raise PacxError(
                f"{text}. Leave a set out; to go on nevertheless give "
                "--config.data.allow_overlap=True; if these are other people of the "
                "same ids, name a namespace for each set in config.data.namespace"
            )


def _named(source) -> set[str]:
    """The keys of a source's known patients, as they are compared."""
    ids = {*(source.patients() or ())}
    return {_folded(source.namespace, i) for i in ids if patients.canonical(i)}


def _folded(space: str, patient: str) -> str:
    """The patient's key in any case: one program writes a UUID large, another small."""
    return patients.key(space, patient).casefold()


def _open(config, split: str):
    """A split of the data; None where a folder may have none."""
    try:
        return sources.open_source(config.data, split)
    except sources.NoSplit:
        return None


def start_of(config) -> str:
    """What the run starts from: `config.model_init`, else its image tokenizer."""
    return config.model_init or config.get("vq_init", "")


def behind(model_init: str) -> Chain:
    """The runs that led to `config.model_init`: a workdir, its export/, or neither."""
    if not model_init:
        return Chain()
    path = urls.absolute(model_init)
    folders = [path]
    if path.rpartition("/")[2] == "export":
        folders.append(path.rpartition("/")[0])
    for folder in folders:
        try:
            local = staging.local(folder, wanted={PATIENTS, KEY}.__contains__)
        except Missing:
            continue
        found = read(local)
        if found:
            return found
    return Chain(
        runs=(
            {
                "run": str(model_init),
                "unknown": f"{model_init} has no {PATIENTS}: it is an exported or "
                "converted encoder, or an older run",
            },
        )
    )


def read(workdir: pathlib.Path) -> Chain | None:
    """The list of a workdir; None without one.

    Without its key nothing can be compared: each of its runs is then unknown.
    """
    file = workdir / PATIENTS
    try:
        content = files.read_json(file)
        if content["format"] != FORMAT:
            raise PacxError(f"{file} has format {content['format']}, not {FORMAT}")
        runs = tuple(dict(run) for run in content["runs"])
        known = [set(run) >= {"run", "namespace", "hashes"} for run in runs]
        if not runs or not all(map(_is_run, runs)):
            raise ValueError("a run without its patients")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise PacxError(
            f"{file} is damaged ({e!r}): delete it, and the overlap is unknown"
        ) from None
    if not any(known):
        return Chain(None, runs)
    try:
        return Chain(bytes.fromhex((workdir / KEY).read_text("ascii")), runs)
    except (OSError, ValueError):
        reason = f"{workdir / KEY} is missing, not readable or damaged"
        return Chain(None, tuple({"run": r["run"], "unknown": reason} for r in runs))


def _is_run(run: dict) -> bool:
    """Whether it has the fields that are compared or told, of their types."""
    texts = [run.get("run"), run.get("objective", ""), run.get("namespace", "")]
    if not all(isinstance(text, str) for text in texts):
        return False
    if not {"namespace", "hashes"} <= set(run):
        return isinstance(run.get("unknown"), str)
    hashes = run["hashes"]
    return isinstance(hashes, list) and all(isinstance(x, str) for x in hashes)


def check(
    config,
    workdir: str,
    held_out: list[str],
    chain: Chain,
    allow: str = "; to go on nevertheless give --config.data.allow_overlap=True",
) -> str:
    """Compares splits of `config.data` with the chain; OVERLAP says how it went.

    Args:
      allow: what a refusal says of going on, where a command can.

    Returns:
      What it found in words; "" where the chain has seen none of the patients.

    Raises:
      PacxError: shared patients, unless `config.data.allow_overlap`.
    """
    found = compare(config, held_out, chain)
    counts = ", ".join(
        f"{row['shared']} of {row['patients']} {split}"
        for split, row in found["splits"].items()
        if row["shared"]
    )
    if counts:
        runs = [r["run"] for r in found["runs"] if r.get("shared")]
        text = f"{counts} patients were in the training of {' and '.join(runs)}"
    else:
        text = f"overlap unknown: {'; '.join(found['unknown'])}"
    if jax.process_index() == 0:
        file = pathlib.Path(workdir) / OVERLAP
        content = json.dumps(found, indent=1) + "\n"
        old = file.read_text("utf-8") if file.exists() else ""
        if found["status"] != "none" and content != old:  # once, not at every resume
            print(f"{config.name}: {text}", flush=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    if counts and not found["allowed"]:
        raise PacxError(
            f"{config.data.path}: {text}, so the probe would be measured on patients "
            f"that its encoder has seen. Take other data or another encoder{allow}; if "
            "these are other people of the same ids, give --config.data.namespace=NAME "
            "in both runs"
        )
    return "" if found["status"] == "none" else text


def compare(config, held_out: list[str], chain: Chain) -> dict:
    """How many patients of splits of `config.data` a chain's runs have seen.

    Returns:
      status ("shared", "unknown" or "none"), splits and runs with `shared`, and the
      reasons why something is unknown.
    """
    unknown = [run["unknown"] for run in chain.runs if "unknown" in run]
    known = [run for run in chain.runs if "unknown" not in run]
    rows, shared_of, space = {}, [0] * len(known), ""
    for split in held_out:
        if (source := _open(config, split)) is None:
            continue
        space, ids = source.namespace, {*(source.patients() or ())}
        named = {i for i in ids if patients.canonical(i)}
        if not named:
            rows[split] = {"patients": None, "shared": None}
            unknown.append(f"{config.data.path} names no patients")
            continue
        if named != ids:
            unknown.append(f"{config.data.path} names no patient of some images")
        everybody = {_folded(space, i): i for i in named}
        seen = [_seen(run, chain.key, space, everybody) for run in known]
        rows[split] = {"patients": len(everybody), "shared": len(set().union(*seen))}
        shared_of = [a + len(b) for a, b in zip(shared_of, seen, strict=True)]
    for run in known:
        here, there = (
            patients.FOLDER in s.split(patients.BETWEEN)
            for s in (space, run["namespace"])
        )
        if space and here != there:
            unknown.append(
                f"whose patients a folder names is not stated ({space} here, "
                f"{run['namespace']} in {run['run']}): give config.data.namespace"
            )
    reasons = list(dict.fromkeys(unknown))
    status = "shared" if any(shared_of) else "unknown" if reasons else "none"
    told = ("run", "objective", "namespace", "patients")
    runs = [
        {k: run[k] for k in told if k in run} | {"shared": n}
        for run, n in zip(known, shared_of, strict=True)
    ]
    return {
        "status": status,
        "allowed": bool(config.data.get("allow_overlap", False)),
        "namespace": space,
        "splits": rows,
        "runs": runs,
        "unknown": reasons,
    }


def _seen(run: dict, key: bytes, space: str, everybody: dict[str, str]) -> set[str]:
    """Which of the patients (by `_folded`, and as written) a run has seen."""
    hashes, seen = set(run["hashes"]), set()
    for who, written in everybody.items():
        forms = {who, patients.key(space, written)}  # lists once had capitals
        if not run.get("canonical"):  # from before ids had one form
            forms |= patients.older_keys(space, written)
        if any(_hash(key, form) in hashes for form in forms):
            seen.add(who)
    return seen


def is_listed(config, workdir: str, train: sources.Source) -> bool:
    """Whether the list stands there already, from before a run was resumed."""
    own = read(pathlib.Path(workdir))
    return bool(own) and own.runs[-1].get("start") == [
        train.fingerprint,
        train.namespace,
        start_of(config),
    ]


def _list_patients(config, workdir: str, train: sources.Source, chain: Chain) -> None:
    folder = pathlib.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    key = chain.key or secrets.token_bytes(32)
    run = {
        "run": staging.name_of(workdir),
        "objective": config.objective,
        "start": [train.fingerprint, train.namespace, start_of(config)],
    }
    everybody = _named(train)
    if not everybody:
        run["unknown"] = f"{config.data.path}, the data of {workdir}, names no patients"
    else:
        run["namespace"], run["patients"] = train.namespace, len(everybody)
        run["canonical"] = True  # by ids in the form of input/patients.py
        # Sorted, so that their order tells nothing.
        run["hashes"] = sorted(_hash(key, who) for who in everybody)
    text = json.dumps({"format": FORMAT, "runs": [*chain.runs, run]}, indent=1) + "\n"
    with files.whole(folder / KEY, permissions=0o600) as file:
        file.write(key.hex() + "\n")
    files.write(folder / PATIENTS, text)


def _hash(key: bytes, who: str) -> str:
    return hmac.new(key, who.encode(), hashlib.sha256).hexdigest()[:32]
