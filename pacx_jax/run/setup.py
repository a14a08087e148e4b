"""Sets up a run: everything that config, data and devices decide.

Training, replaying a step and measuring a finished run all start from here, so that
they compute the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from pacx_jax import objectives, optim, sharding, step, target
from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from pacx_jax.run import fingerprints, monitor
from pacx_jax.types import Metrics, Objective

if TYPE_CHECKING:  # a stage on synthetic batches needs no readers of data
    from pacx_jax.run import batches


@dataclasses.dataclass(frozen=True)
class Run:
    """One stage of a run.

    Attributes:
      config: with `data.label_columns` filled in.
      objective: what is trained.
      data: its batches; None where the caller has its own.
      mesh: its devices.
      abstract: the TrainState's shapes, dtypes and shardings.
      init: () -> the state before the first step.
      train_step: (state, batch, step_key) -> (state, metrics); the state is donated.
      monitor: what is logged beside the step's metrics.
      eval_step: (state, batch, key) -> the outputs of each example.
      step_key: of the steps' randomness.
      eval_key: of the evaluation's.
      weights: part -> hash of the weights that it starts from.
    """

    config: Any
    objective: Objective
    data: batches.Data | None
    mesh: Mesh
    abstract: step.TrainState
    init: Callable[[], step.TrainState]
    train_step: Callable[..., tuple[step.TrainState, Metrics]]
    monitor: monitor.Monitor
    eval_step: Callable[..., dict[str, jax.Array]]
    step_key: jax.Array
    eval_key: jax.Array
    weights: dict[str, str]

    def fingerprints(self) -> dict[str, str | int]:
        """What the run reads, as hashes and numbers."""
        return self.data.fingerprints() | {
            f"weights.{part}": value for part, value in self.weights.items()
        }

    def images(self, state) -> dict[str, np.ndarray]:
        """Pictures of the first validation batch, {} if the objective draws none."""
        if self.objective.images is None:
            return {}
        with contextlib.closing(self.data.val()) as batches:
            batch = next(iter(batches))
        batch = {k: v for k, v in batch.items() if k not in ("mask", "index")}
        found = jax.device_get(self.monitor.images(state, batch, self.eval_key))
        return {name: np.asarray(images) for name, images in found.items()}

    def evaluate(self, state, between: Callable[[], None] = lambda: None):
        """Metrics over the validation split, each named "val/...".

        Args:
          between: called before every batch; what it raises ends the evaluation.
        """
        outputs, index = collect(
            self.eval_step, state, self.data.val(), self.eval_key, self.mesh, between
        )
        with jax.transfer_guard("allow"):  # an objective may compute this with JAX
            metrics = self.objective.summarize(outputs)
            source = self.data.sources[self.config.data.val_split]
            for name, found in by_set(self.objective, source, outputs, index).items():
                metrics |= {f"{name}/{k}": v for k, v in found.items()}
        return {f"val/{k}": v for k, v in metrics.items()}


def prepare(config, workdir: str, opened: dict) -> Run:
    """Makes the objective, its data and steps, and loads what it starts from.

    Args:
      opened: of `batches.open_sources`.

    Raises:
      PacxError: whatever is wrong with the config, the data or the weights.
    """
    from pacx_jax.run import batches

    config = batches.with_label_names(config, opened)
    mesh, objective = place(config)
    data = batches.Data(config, workdir, objective, mesh, opened)
    return assemble(config, mesh, objective, data)


def assemble(config, mesh: Mesh, objective: Objective, data=None) -> Run:
    """The steps of an objective, and the weights that it starts from.

    Args:
      data: the stage's batches.
    """
    settings = optim.settings(config)
    tx = optim.make(settings, config.total_steps)
    rate = optim.schedule(settings, config.total_steps)
    everywhere = sharding.replicated(mesh)
    keys = jax.random.split(jax.random.key(config.seed), 3)
    # Put on all devices once; a step that got them on one would copy them each time.
    init_key, step_key, eval_key = jax.jit(
        tuple, in_shardings=everywhere, out_shardings=everywhere
    )(keys)

    def init(key, loaded):
        params = objective.init(key)
        return step.make_state({**params, **loaded}, objective, tx)

    loaded = load_parts(objective, init_key)
    with sharding.tracing(mesh):
        target.say_of_dtype(config.dtype)
        abstract = jax.eval_shape(init, init_key, loaded)
    shardings = sharding.tree_shardings(abstract, mesh)
    return Run(
        config=config,
        objective=objective,
        data=data,
        mesh=mesh,
        abstract=jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
            abstract,
            shardings,
        ),
        init=lambda: first_state(init, init_key, loaded, shardings, mesh),
        train_step=step.make_train_step(
            objective, tx, mesh, shardings, config.get("accumulate", 1)
        ),
        monitor=monitor.Monitor(objective, rate, mesh, shardings),
        eval_step=step.make_eval_step(objective, mesh, shardings),
        step_key=step_key,
        eval_key=eval_key,
        weights={part: fingerprints.of_tree(tree) for part, tree in loaded.items()},
    )


def first_state(init, key, loaded: dict, shardings, mesh: Mesh) -> step.TrainState:
    """Runs init(key, loaded) under jit, directly into its final sharding."""
    split = sharding.tree_shardings(loaded, mesh)
    jitted = jax.jit(
        init,
        in_shardings=(sharding.replicated(mesh), split),
        out_shardings=shardings,
        compiler_options=step.compiler_options(mesh),
    )
    return jitted(key, sharding.put_tree(loaded, split))


def place(config, devices=()) -> tuple[Mesh, Objective]:
    """The mesh that `config.mesh` describes, and the objective on it.

    A config from before there was `mesh` has the automatic one.

    Args:
      devices: other ones than this machine's, such as a planned pod's.

    Raises:
      PacxError: the mesh does not match the devices, the batch or the model, or JAX
        is set to another precision.
    """
    if jax.config.jax_enable_x64:
        raise PacxError(
            "JAX_ENABLE_X64 is set: runs are in float32, and would draw other random "
            "numbers; give JAX_ENABLE_X64=0 before this command"
        )
    wanted = config.get("mesh") or {}
    fsdp, tensor = wanted.get("fsdp", 0), wanted.get("tensor", 1)
    mesh = sharding.make_mesh(config.num_devices, fsdp or 1, tensor, devices)
    parts = ("accumulate", "encoder_chunks")
    parts = {name: config.get(name, 1) for name in parts}
    sharding.check_batch_size(config.global_batch_size, mesh, parts)
    objective = objectives.make(config, mesh)
    if not fsdp:
        shapes = jax.eval_shape(objective.init, jax.random.key(0))
        fsdp = sharding.automatic_fsdp(shapes, mesh)
        if fsdp > 1:
            mesh = sharding.make_mesh(config.num_devices, fsdp, tensor, devices)
            objective = objectives.make(config, mesh)
    return mesh, objective


def load_parts(objective: Objective, key: jax.Array) -> dict:
    """The parameter subtrees that `objective.pretrained` names, from their folders.

    Raises:
      PacxError: a folder without that part, or with one of another architecture.
    """
    from pacx_jax.run import checkpoint, remote_run, saved_steps

    loaded = {}
    if not objective.pretrained:
        return loaded
    expected = jax.eval_shape(objective.init, key)
    for part, folder in objective.pretrained.items():
        model = model_folder.load(folder)
        if part == "encoder" or part == model.kind:
            loaded[part] = model.params
        elif model.kind == "unified" and part in model.params:
            loaded[part] = model.params[part]
        elif model.heads and part in model.heads.params:
            loaded[part] = model.heads.params[part]
        elif not ((run := remote_run.finished(folder)) / "checkpoints").is_dir():
            raise PacxError(
                f"{folder} holds no {part}: give a run's workdir, or for an MAE "
                "--config.model_init_parts='(\"encoder\",)' to start that anew"
            )
        else:
            tree = checkpoint.read_params(run)
            if part not in tree:
                raise PacxError(f"{folder} has no {part!r} among its parameters")
            loaded[part] = tree[part]
        has, wants = map(saved_steps.leaves, (loaded[part], expected[part]))
        wrong = [k for k in sorted({*has, *wants}) if has.get(k) != wants.get(k)]
        if wrong:
            name = wrong[0]
            raise PacxError(
                f"{folder}: its {part} is not that of config.model: {len(wrong)} "
                f"parameters differ, such as {name}: {has.get(name)} there, "
                f"{wants.get(name)} here"
            )
    return loaded


def collect(eval_step, state, val_batches, key, mesh, between=lambda: None):
    """Every real example's outputs, {name: (n, ...)}, and its index in the source."""
    gather, numbered = _jitted(mesh)
    collected = []
    with contextlib.closing(val_batches):
        for i, batch in enumerate(val_batches):
            between()
            mask, index = batch.pop("mask"), batch.pop("index")
            with jax.transfer_guard("allow"):  # of the number
                batch_key = numbered(key, np.uint32(i))
            out = eval_step(state, batch, batch_key)
            out, mask, index = jax.device_get((out, gather(mask), gather(index)))
            out = {k: v[mask > 0.5] for k, v in (out | {"index": index}).items()}
            collected.append(out)
    whole = {k: np.concatenate([c[k] for c in collected]) for k in collected[0]}
    return whole, whole.pop("index")


def by_set(objective: Objective, source, outputs: dict, index: np.ndarray, more=None):
    """The metrics of each set of a mixture that has any; {} of another source.

    Args:
      outputs, index: of `collect`.
      more: (outputs of a set, which of all they are) -> further ones.
    """
    if not hasattr(source, "sets"):
        return {}
    numbers, found = source.set_numbers()[index], {}
    for i, name in enumerate(source.sets):
        rows = np.flatnonzero(numbers == i)
        each = {k: v[rows] for k, v in outputs.items()}
        try:
            if len(rows):
                found[name] = objective.summarize(each)
                found[name] |= more(each, rows) if more else {}
        except PacxError as e:  # such as a set without a modality
            logging.warning("%s: no metrics of its own (%s)", name, e)
    return found


@functools.cache
def _jitted(mesh: Mesh):
    """Rows from all devices to each; fold_in of a key, the same on each."""
    everywhere = sharding.replicated(mesh)
    gather = jax.jit(
        lambda x: x,
        in_shardings=sharding.batch_sharding(mesh),
        out_shardings=everywhere,
    )
    return gather, jax.jit(
        jax.random.fold_in, in_shardings=everywhere, out_shardings=everywhere
    )
