"""Shapes in the annotations of public functions, which nobody has to install."""

import collections.abc
import contextlib
import dataclasses
import functools
import importlib
import inspect
import os
import re
import subprocess
import sys
import types
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pacx_jax
from pacx_jax import lora, losses, sharding
from pacx_jax.encoders import xray_encoder
from pacx_jax.evaluate import (
    alignment,
    calibration,
    classifier,
    comparison,
    delong,
    measures,
    probe,
    rollout,
    statistics,
    thresholds,
)
from pacx_jax.models import (
    ecg,
    heads,
    labs_dae,
    mae,
    text,
    text_loss,
    unified,
    unified_encoder,
    vit,
    vq,
)
from pacx_jax.objectives import retrieval
from tests import tiny

# Beside where the public names are: what is called from notebooks and studies.
LIBRARY = (
    "encoders.ecg_encoder evaluate.alignment evaluate.calibration evaluate.comparison "
    "evaluate.delong evaluate.measures evaluate.probe evaluate.statistics "
    "evaluate.thresholds lora losses models.ecg models.heads models.labs_dae "
    "models.mae models.text models.text_loss models.unified models.unified_encoder "
    "models.vit models.vq objectives.retrieval"
).split()
MODULES = sorted({*pacx_jax._PUBLIC.values(), *(f"pacx_jax.{x}" for x in LIBRARY)})
# Shapes in a docstring, such as (n, d); below, what looks so or is a tuple of numbers.
SHAPE = re.compile(r"\((?:[\w.]+(?: [-+*/] \w+)*, ?)+(?:[\w.]+(?: [-+*/] \w+)*)?\)")
NO_ARRAYS = (
    "interval load_ecg_encoder load_encoder fit_probe middle_third from_config "
    "check_images"
).split()
# What is computed inside of these modules, and read by nobody else.
PRIVATE = {
    "models.text": {"SelfAttention", "CrossAttention", "Mlp", "Block", "linear"}
    | {"masked_attention", "keys_and_values", "TextDecoder.next_logits"},
    "models.unified": {"Attention", "Block"},
}


@functools.cache
def names():
    """Names of jaxtyping; where CI says that it must be there, it is."""
    try:
        import jaxtyping
    except ImportError:
        if os.environ.get("PACX_REQUIRE_TORCH") == "1":
            raise
        pytest.skip("jaxtyping is not installed")
    return vars(jaxtyping)


def resolved(thing):
    """The annotations of a function or a dataclass.

    An `Image` is a path, a PIL image or an array of one of several ranks, which the
    encoder's docstring names.
    """
    module = vars(sys.modules[thing.__module__])
    return typing.get_type_hints(thing, names() | module | {"Image": typing.Any})


def leaves(hint):
    """The types that an annotation is made of."""
    inside = [x for arg in typing.get_args(hint) for x in leaves(arg)]
    return inside or [hint]


def has_shape(hint):
    return any(hasattr(leaf, "dim_str") for leaf in leaves(hint))


def functions(module):
    """Name -> each public function, method and dataclass of a module."""
    found = {}
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", "") != module.__name__:
            continue
        if inspect.isfunction(value):
            found[name] = value
        elif inspect.isclass(value):
            methods = {"__call__"}
            if dataclasses.is_dataclass(value):  # has its fields for an __init__
                found |= {} if issubclass(value, nn.Module) else {name: value}
            else:
                methods.add("__init__")
            for method, each in vars(value).items():
                each = getattr(each, "__func__", each)  # of a classmethod
                named = not method.startswith("_") or method in methods
                if inspect.isfunction(each) and named:
                    found[f"{name}.{method}"] = each
    private = PRIVATE.get(module.__name__.removeprefix("pacx_jax."), ())
    return {k: v for k, v in found.items() if not {k, k.partition(".")[0]} & {*private}}


@pytest.mark.parametrize("name", MODULES)
def test_every_array_of_the_public_functions_has_its_shape(name):
    for called, function in functions(importlib.import_module(name)).items():
        hints = resolved(function)
        bare = [k for k, v in hints.items() if {np.ndarray, jax.Array} & {*leaves(v)}]
        assert not bare, f"{called}: {bare}"
        if SHAPE.search(function.__doc__ or "") and called not in NO_ARRAYS:
            assert any(map(has_shape, hints.values())), called


def test_all_that_the_public_functions_take_and_return_has_a_type():
    surface = [pacx_jax.load_encoder, pacx_jax.fit_probe, pacx_jax.rollout]
    surface += [pacx_jax.train, pacx_jax.recipes.get, pacx_jax.recipes.names]
    for owner in (xray_encoder, classifier):
        found = functions(owner).items()
        surface += [f for k, f in found if k.startswith(("Encoder.", "Classifier."))]
    assert len(surface) > 15
    for function in surface:
        signature = inspect.signature(function)
        given = [p for k, p in signature.parameters.items() if k not in ("self", "cls")]
        assert all(p.annotation is not p.empty for p in given), function
        gives = signature.return_annotation is not signature.empty
        assert gives or function.__name__ == "__init__", function


def fits(value, hint):
    """Whether the arrays of a value have the shapes and types of an annotation."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if value is None or hint is type(None):
        return value is None and hint is type(None)
    if hasattr(hint, "dim_str"):
        return isinstance(value, hint)
    if origin is tuple:
        args = args[:1] * len(value) if args[1:] == (...,) else args
        same = isinstance(value, tuple) and len(value) == len(args)
        return same and all(map(fits, value, args))
    if origin in (list, collections.abc.Sequence, collections.abc.Iterable):
        return all(fits(x, args[0]) for x in value)
    if origin in (dict, collections.abc.Mapping):
        return all(fits(x, args[1]) for x in value.values())
    return True  # no array


def checked(function, seen, run=None):
    """`run`, or the function, which fails where an array is not as it is annotated."""
    hints, run = resolved(function), run or function

    @functools.wraps(function)
    def call(*args, **kwargs):
        given = inspect.signature(function).bind(*args, **kwargs).arguments
        with names()["jaxtyped"]("context"):
            for key, value in given.items():
                told = f"{function.__qualname__}: {key} is no {hints.get(key)}"
                assert key not in hints or fits(value, hints[key]), told
            found = run(*args, **kwargs)
            told = f"{function.__qualname__} does not give {hints.get('return')}"
            assert "return" not in hints or fits(found, hints["return"]), told
        seen.add((function.__module__, function.__qualname__))
        return found

    return call


@contextlib.contextmanager
def watched(*modules):
    """Checks each call of the modules' functions and methods; wants all called."""
    wanted, seen, methods = set(), set(), {}

    def intercept(run, args, kwargs, context):
        function = methods.get((type(context.module), context.method_name))
        if function is None:
            return run(*args, **kwargs)
        whole = checked(function, seen, lambda self, *a, **k: run(*a, **k))
        return whole(context.module, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, nn.intercept_methods(intercept):
        for module in modules:
            for name, function in functions(module).items():
                owner, _, method = name.rpartition(".")
                owner = getattr(module, owner) if owner else module
                if not any(map(has_shape, resolved(function).values())):
                    continue
                if inspect.isclass(function):
                    continue
                wanted.add((function.__module__, function.__qualname__))
                if inspect.isclass(owner) and issubclass(owner, nn.Module):
                    methods[owner, method] = function
                else:
                    patch.setattr(owner, method, checked(function, seen))
        yield
    assert seen == wanted, f"not called: {wanted - seen}"


RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
IMAGES, TOKENS = jnp.zeros((2, 16, 16, 1)), jnp.ones((2, 5), int)


def draws(*shape):
    return RNG.normal(size=shape)


def labels(n, c):
    return RNG.permuted(np.tile(np.arange(n)[:, None] % 2.0, c), axis=0)


def test_statistics_have_the_shapes_that_they_say():
    scores, y = draws(3, 2, 20, 4), labels(20, 4)
    with watched(statistics):
        weights = statistics.bootstrap_weights(np.arange(20) // 2, 7)
        picks = statistics.seed_draws(2, 7)
        point, resampled = statistics.resampled_auroc(scores, y, weights)
        each, drawn = statistics.macro_distribution(point, resampled, picks)
        statistics.over_trainings(each, drawn)
        statistics.p_value(each, drawn)
        statistics.row(drawn)
        statistics.row_over_trainings(draws(3, 8))
        statistics.weighted_means(draws(20), weights)
        statistics.holm([0.01, 0.2])
    with watched(comparison):
        given = comparison.by_training(
            {(("mae", 0), 1.0): scores[0], (("mae", 1), 1.0): scores[1]}
        )
        who, of = np.arange(20), ("a", "b", "c", "d")
        comparison.compare_arms(given, y, np.ones_like(y), who, of, {}, [], {1.0: 20})


def test_measures_have_the_shapes_that_they_say():
    x, y, who = draws(20, 3), labels(20, 3), np.arange(20)
    known = np.ones((20, 3), np.float32)
    outputs = {"logits": np.float32(x), "labels": np.float32(y), "label_mask": known}
    with watched(measures):
        given = measures.examples(outputs, ("a", "b", "c"))
        given.rows(np.arange(5)).columns([0])
        given.known(1)
        measures.scored(given, np.float64(statistics.bootstrap_weights(who, 5)))
        measures.one_vs_rest(x)
        measures.per_image(dict.fromkeys(("hits", "called", "truth"), np.ones((4, 1))))
    with watched(delong):
        delong.paired(x[:, 0], x[:, 1], y[:, 0], who)
    with watched(calibration):
        weights = np.ones((3, 20))
        calibration.temperature(x[:, 0], y[:, 0])
        calibration.platt(x[:, 0], y[:, 0])
        calibration.reliability(x[:, 0], y[:, 0], weights)
    with watched(thresholds):
        thresholds.rates(x[:, 0], y[:, 0], weights, 0.0)
        thresholds.net_benefit(x[:, 0], y[:, 0], weights)
        thresholds.choose(x[:, 0], y[:, 0], "max_f1")


def test_probes_have_the_shapes_that_they_say():
    x, y, who = draws(24, 3), labels(24, 2), np.arange(24)
    with watched(probe):
        arms, known = {"mae": {"train": x, "test": x[:5]}}, np.ones_like(y)
        index = {"train": who, "test": np.arange(5)}
        probe.run_probes(arms, y, known, (1.0,), (0,), who, (), index)
        probe.check_classes(y, known, ("a", "b"), "images")
    with watched(alignment, retrieval):
        alignment.ridge_alignment(x, draws(24, 5), x[:9], draws(9, 5))
        alignment.with_intervals(x, draws(24, 5), x[:9], draws(9, 5), who[:9], 1.0, 4)
        retrieval.recall_at_k(x, x)
        retrieval.hits_at_k(x, x, (1,))
        retrieval.normalize_rows(x)


def test_encoders_have_the_shapes_that_they_say():
    images = [np.uint8(99 * np.ones((20, 30))), np.uint8(np.ones((16, 16, 3)))]
    encoder = xray_encoder.Encoder(tiny.folder("vit"), num_devices=1)
    with watched(xray_encoder, rollout, classifier):
        z = encoder(images)
        encoder.tokens(images)
        maps = pacx_jax.evaluate.rollout.rollout(encoder, images)
        rollout.overlay(images[1], maps[0])
        rollout.difference_map(maps, maps)
        rollout.rollout_maps(encoder.attentions(images), 32)
        kernel, bias = np.ones((32, 2), np.float32), np.zeros(2, np.float32)
        model = classifier.Classifier(encoder, kernel, bias, ("a", "b"))
        model.decide(model.predict(images))
        assert z.shape == (2, 32)


def masked_autoencoder():
    encoder = vit.ViT(8, 32, 2, 2, channels=1)
    model = mae.MAE(encoder, mae.Decoder(64, 16, 1, 2))
    keep, restore, mask = mae.random_masking(KEY, jnp.arange(2), 4, 0.75)
    model.init(KEY, IMAGES, keep, restore)
    ids = mae.masked_ids(keep, restore)
    target = mae.patch_targets(IMAGES, 8, True, ids)
    mae.reconstruction_loss(target, target)
    mae.pictures(IMAGES, jnp.zeros((2, 4, 64)), mask, 8, True)


def physiology():
    values = jnp.zeros((2, 50))
    model = labs_dae.LabsDAE(labs_dae.Encoder(16, 8), labs_dae.Decoder(50, 16))
    model.init(KEY, values, values)
    seen, mask, _ = labs_dae.corrupt(KEY, jnp.arange(2), values, values, 0.5)
    labs_dae.masked_mse(seen, values, mask)
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in tiny.ECG.items()}
    ecg.Classifier(ecg.Net1D(**fields), 3).init(KEY, jnp.zeros((2, 64, 12)))
    heads.Head(5).init(KEY, jnp.zeros((2, 8)), train=False)
    heads.LinearClassifier(5).init(KEY, jnp.zeros((2, 8)))
    heads.SegmentationDecoder((8, 4, 4, 4, 2)).init(KEY, jnp.zeros((1, 3, 2, 8)))


def tokens_of_images():
    words, coder = unified.Words(12, 16), vq.module(tiny.VQ)
    variables = coder.init(KEY, IMAGES)
    codes = coder.apply(variables, IMAGES, method="encode")
    coder.apply(variables, codes, method="decode")
    model = unified.Transformer(words.size, 30, 32, 2, 2)
    encoder = unified_encoder.Encoder(coder, model, words, (0, 1))
    variables = encoder.init(KEY, IMAGES, jnp.zeros((2, 3), int))
    encoder.apply(variables, IMAGES, method="each_layer")
    words.kinds(TOKENS), words.content(TOKENS)
    variables = {"params": variables["params"]["transformer"]}
    _, cache = model.apply(variables, TOKENS, 9, method="start")
    model.apply(variables, TOKENS[:, 0], jnp.int32(5), cache, method="next_logits")
    unified.output_kernel(variables["params"], False)


def texts():
    model = text.TextDecoder(12, 16, 1, 2, 16)
    variables = model.init(KEY, TOKENS, jnp.zeros((2, 3, 16)))
    logits = model.apply(variables, TOKENS, jnp.zeros((2, 3, 16)))
    text_loss.caption_loss(logits, TOKENS, jnp.ones(2), 0)
    hidden, kernel = jnp.zeros((2, 5, 16)), variables["params"]["head"]["kernel"]
    text_loss.chunked_caption_loss(hidden, kernel, TOKENS, jnp.ones(2), 0)
    text_loss.by_row(hidden, kernel, TOKENS, jnp.ones((2, 5, 3), bool))


def stage_two():
    z, here = jnp.ones((8, 4)), jnp.ones(8)
    scale, mesh = losses.temperature_scale(jnp.ones(())), sharding.make_mesh(2)
    how = {"label_smoothing": 0.1, "mesh": mesh, "present": {"ecg": here}, "chunk": 4}
    losses.info_nce(z, {"ecg": z, "labs": z}, scale, **how)
    losses.cosine_regression(z, z, here)
    losses.masked_bce(z, z, z)
    losses.known(z, 0)
    params = {"qkv": {"kernel": jnp.ones((4, 6))}}
    adapters = lora.init(KEY, params, ("qkv",), 2)
    lora.share(params, adapters, 2.0)
    lora.low_rank(z, jnp.ones((4, 2)), jnp.ones((2, 6)))
    with lora.applied(adapters, alpha=2, key=KEY, rows=jnp.arange(8)):
        pass


@pytest.mark.parametrize(
    ("modules", "run"),
    [
        ((losses, lora), stage_two),
        ((vit, mae), masked_autoencoder),
        ((labs_dae, ecg, heads), physiology),
        ((vq, unified, unified_encoder), tokens_of_images),
        ((text, text_loss), texts),
    ],
)
def test_models_and_losses_have_the_shapes_that_they_say(modules, run):
    with watched(*modules):
        jax.eval_shape(run)  # compiles nothing
        if vq in modules:
            vq.check_codes(np.ones((2, 4, 4), int), 16)


def test_a_wrong_shape_or_type_is_noticed():
    def give(x, y):
        return x + y

    array = names()["Float32"]
    give.__annotations__ = {"x": array[np.ndarray, "n d"], "y": array[np.ndarray, " d"]}
    give.__annotations__["return"] = array[np.ndarray, "n d"]
    call = checked(give, set())
    x = np.zeros((2, 3), np.float32)
    call(x, x[0])
    for wrong in (x[:, 0], x, np.float64(x[0])):
        with pytest.raises(AssertionError, match="give: y is no"):
            call(x, wrong)
    give.__annotations__["return"] = array[np.ndarray, "d n"]
    with pytest.raises(AssertionError, match="give does not give"):
        checked(give, set())(x, x[0])


def test_the_library_runs_where_jaxtyping_is_missing():
    code = f"""
import importlib, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "jaxtyping":
            raise ImportError("no jaxtyping here")
sys.meta_path.insert(0, Missing())
for name in {["pacx_jax", *MODULES]}:
    importlib.import_module(name)
help(sys.modules["pacx_jax"].rollout)
assert "jaxtyping" not in sys.modules
"""
    command = [sys.executable, "-c", code]
    subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL)
