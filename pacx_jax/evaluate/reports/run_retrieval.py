"""What a run's embeddings are near to: retrieval examples, TensorBoard's projector."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Sequence

import ml_collections
import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.evaluate import held_out
from pacx_jax.evaluate.reports import run_images
from pacx_jax.evaluate.reports.run_files import Run
from pacx_jax.evaluate.reports.run_parts import Part, Pictures
from pacx_jax.input import images as imageio
from pacx_jax.input import patients, sources, views
from pacx_jax.objectives.retrieval import normalize_rows
from pacx_jax.run import batches, setup

AMONG = 256  # X-rays of the validation split that retrieval is shown on
FOUND = 4  # studies shown for a query


def retrieval(runs: Sequence[Run], count: int) -> Part:
    """For `count` X-rays of each run, the records, other views or X-rays nearest."""
    rows, told = [], []
    for run in runs:
        own = {"distill": _by_record, "mvmae": _by_view}
        try:
            rows += own.get(run.config.objective, _by_image)(run, count)
        except (PacxError, FileNotFoundError) as error:
            told.append(f"{run.name}: {error}.")
    lacking = " ".join(told)
    return Part(
        "Retrieval examples",
        lacking or "No query has a record or another view.",
        f"Among {AMONG} or fewer validation studies. Distilled: the X-rays of those "
        "whose record is most similar to the query in the shared space. MVMAE: the "
        "laterals whose embedding is most similar to the frontal's. Others: the X-rays "
        f"of other patients whose embedding is most similar. By cosine. {lacking}",
        pictures=rows,
    )


def _by_record(run: Run, count: int) -> list[Pictures]:
    config = ml_collections.ConfigDict(run.config.to_dict())
    config.data.limit = min(config.data.limit or AMONG, AMONG)
    config.export = run.state_shown
    config.update({"num_devices": 1, "cache_dir": "", "global_batch_size": 32})
    config.update_from_flattened_dict({"mesh.fsdp": 0, "mesh.tensor": 1})
    config.update({"accumulate": 1, "encoder_chunks": 1})
    split = config.data.val_split
    opened = sources.open_splits(config.data)
    config = batches.with_label_names(config, opened)
    mesh, objective = setup.place(config)
    with tempfile.TemporaryDirectory() as scratch:  # nothing is written to the run
        data = batches.Data(config, scratch, objective, mesh, opened)
        args = config, str(run.path), mesh, objective, data, split
        outputs, index = held_out.outputs_of(*args)
    source, rows = data.sources[split], []

    def read(i: int) -> np.ndarray:
        return run_images.read(source, int(index[i]))[0]

    z = normalize_rows(outputs["cxr"])
    for m in objective.teachers or {r.name: r for r in objective.readers}:
        here = outputs.get(f"{m}_present", np.ones(len(z))) > 0
        rows += _ranked(run, m, z, normalize_rows(outputs[m]), here, count, read, read)
    return rows


def _by_view(run: Run, count: int) -> list[Pictures]:
    data = run.config.data
    source = sources.open_source(data, data.val_split)
    if "images" not in source.entries:
        raise PacxError("the run's data have no studies of several views")
    model = run_images.encoder(run)
    frontals, laterals = run_images.Xrays([], []), run_images.Xrays([], [])
    rows = [], []  # as the encoder takes them; whole X-rays would fill the memory
    for i in map(int, np.random.default_rng(0).permutation(len(source))[:AMONG]):
        try:
            example = source[i]
            kinds = [views.coarse(name) for name in example["views"]]
            if not {"frontal", "lateral"} <= set(kinds):
                continue
            pair = kinds.index("frontal"), kinds.index("lateral")
            read = [imageio.decode(example["images"][k], source.name(i)) for k in pair]
        except PacxError:
            continue
        for k, found in enumerate((frontals, laterals)):
            found.images.append(run_images.small(read[k]))
            found.views.append(example["views"][pair[k]])
            rows[k].append(model.preprocess(read[k]))
    if len(frontals.images) < 2:
        raise PacxError("fewer than two validation studies have frontal and lateral")
    z, keys = (
        normalize_rows(model(rows[k], each.views if model.views else None))
        for k, each in enumerate((frontals, laterals))
    )
    here = np.ones(len(z), bool)
    read = frontals.images.__getitem__, laterals.images.__getitem__
    return _ranked(run, "lateral", z, keys, here, count, *read)


def _by_image(run: Run, count: int) -> list[Pictures]:
    source, places, shown, z = _embedded(run, AMONG)
    z, known = normalize_rows(z), source.patients()
    who, unnamed = patients.units(known[i] if known else "" for i in places)
    whose = "of other patients"
    if unnamed:
        some = f"{unnamed} of {len(who)} " * (unnamed < len(who))
        whose = f"others, {some}patients unknown"
    rows = []
    for i in range(min(count, len(z))):  # drawn at random already
        others = np.flatnonzero([each != who[i] for each in who])
        if not len(others):
            raise PacxError("all validation X-rays are of one patient")
        cosine = z[others] @ z[i]
        query = f"{run.name}: X-ray {i + 1}, among {len(others)} {whose}"
        row = [(query, shown.images[i])]
        for k, j in enumerate(np.argsort(-cosine, kind="stable")[:FOUND], start=1):
            row.append((f"{k}. cosine {cosine[j]:.3f}", shown.images[others[j]]))
        rows.append(Pictures(f"{run.name}, query {i + 1}", row))
    return rows


def _embedded(run: Run, most: int):
    """Up to `most` X-rays of the validation split that can be read, embedded.

    Returns:
      The split, the X-rays' places in it, the X-rays as small as on the page, and
      their embeddings (n, d).

    Raises:
      PacxError: no X-ray encoder, or no X-rays.
    """
    data = run.config.data
    source = sources.open_source(data, data.val_split)
    if not {"image", "images"} & set(source.entries):
        raise PacxError("the run's data have no X-rays")
    model = run_images.encoder(run)
    places, shown, rows = [], run_images.Xrays([], []), []
    for i in map(int, np.random.default_rng(0).permutation(len(source))[:most]):
        try:
            image, view = run_images.read(source, i)
        except PacxError:
            continue
        places.append(i)
        shown.images.append(run_images.small(image))
        shown.views.append(view)
        rows.append(model.preprocess(image))  # whole X-rays would fill the memory
    if not rows:
        raise PacxError("no X-ray of the validation split can be read")
    named = [v if v not in ("", "unknown") else "frontal" for v in shown.views]
    return source, places, shown, model(rows, named if model.views else None)


def _ranked(run, what, z, keys, here, count, query_of, found_of) -> list[Pictures]:
    """Queries, and for each the FOUND nearest keys of studies that are `here`."""
    rows = []
    chosen = np.random.default_rng(0).permutation(len(z))[:count]
    for number, i in enumerate(map(int, chosen), start=1):
        if not here[i]:
            continue
        cosine = np.where(here, keys @ z[i], -np.inf)
        order = np.argsort(-cosine, kind="stable")
        rank = int(np.flatnonzero(order == i)[0]) + 1
        query = f"{run.name}: X-ray {number}, its own {what} is at rank {rank} of "
        shown = [(f"{query}{here.sum()}", run_images.small(query_of(i)))]
        for k, j in enumerate(map(int, order[: min(FOUND, here.sum())]), start=1):
            own = ", its own" if j == i else ""
            image = run_images.small(found_of(j))
            shown.append((f"{k}. {what}, cosine {cosine[j]:.3f}{own}", image))
        rows.append(Pictures(f"{run.name}, {what}, query {number}", shown))
    return rows


def project(run: Run, folder: pathlib.Path, most: int = 1000) -> str:
    """Writes TensorBoard's projector files of the run's validation embeddings.

    Returns:
      What was written, in words.

    Raises:
      PacxError: no X-ray encoder, or no data.
    """
    import tensorboardX

    try:
        source, places, shown, z = _embedded(run, most)
    except PacxError as e:
        raise PacxError(f"{run.path}: {e}") from None
    rows = []
    for number, (i, view) in enumerate(zip(places, shown.views, strict=True)):
        labels = source[i].get("labels", np.zeros(0))
        rows.append([str(number), view or "unknown", *(f"{x:g}" for x in labels)])
    sprites = np.stack([imageio.resize(image, 32) for image in shown.images])
    header = ["number", "view", *source.label_names]
    # It does not fill the last rows of the sprites' square: some of that may be NaN.
    quiet = np.errstate(invalid="ignore")
    with quiet, tensorboardX.SummaryWriter(str(folder)) as writer:
        writer.add_embedding(
            z,
            metadata=rows,
            metadata_header=header,
            label_img=sprites.transpose(0, 3, 1, 2) / 255,
            global_step=run.step,
            tag=run.name,
        )
    return f"{folder}: {len(z)} embeddings, for tensorboard --logdir={folder}"
