"""Augmentation against torchvision's, from the same draws, in grey levels of uint8.

`Draws` takes torch's random numbers in the order in which the transforms ask for them,
so where torchvision's own transform is run under the same seed, sampling is compared
too: how often a box is rejected, how it is rounded, where it lies.
"""

import numpy as np
import pytest
from PIL import Image

from pacx_jax.input import augment, images
from tests.parity import comparing

SEEDS = range(40)
RNG = np.random.default_rng(0)
# Smooth as a film, with noise; not square, so that the axes cannot be confused.
FILM = images.resize_to(RNG.integers(0, 256, (20, 24), dtype=np.uint8), 160, 195)
FILM = np.clip(FILM + RNG.normal(0, 6, FILM.shape), 0, 255).astype(np.uint8)
SQUARE = FILM[:112, :112]


class Draws:
    """A generator whose numbers are torch's under a seed."""

    def __init__(self, torch, seed):
        self.torch = torch
        torch.manual_seed(seed)

    def uniform(self, low, high):
        return self.torch.empty(1).uniform_(low, high).item()

    def integers(self, n):
        return self.torch.randint(0, n, (1,)).item()

    def random(self):
        return self.torch.rand(1).item()


@pytest.fixture(scope="module")
def torch():
    comparing.require_torch()
    import tests.torchvision_ops  # noqa: F401  before torchvision

    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def tv(torch):
    return pytest.importorskip("torchvision").transforms


def as_tensor(torch, image):
    return torch.from_numpy(image.astype(np.float32) / 255)[None]


def levels(tensor):
    return tensor[0].numpy() * 255


@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (0.85, 1.15)])
def test_a_random_resized_crop_is_torchvisions_of_a_pil_image(
    torch, tv, measure, ratio
):
    theirs = tv.RandomResizedCrop(64, scale=(0.5, 1.0), ratio=ratio)
    got, want = [], []
    for image in (FILM, FILM[:, :60], np.ascontiguousarray(FILM.T)):
        for seed in SEEDS:
            draws = Draws(torch, seed)
            got.append(augment.random_resized_crop(image, 64, (0.5, 1.0), ratio, draws))
            torch.manual_seed(seed)
            want.append(np.asarray(theirs(Image.fromarray(image))))
    measure("crop, grey levels", np.array(got, float), np.array(want, float), 0.0)


def test_a_random_resized_crop_is_that_of_a_tensor_to_a_rounding(torch, tv, measure):
    theirs = tv.RandomResizedCrop(112, scale=(0.75, 1.0), ratio=(0.85, 1.15))
    got, want = [], []
    for seed in SEEDS:
        draws = Draws(torch, seed)
        got.append(
            augment.random_resized_crop(FILM, 112, (0.75, 1.0), (0.85, 1.15), draws)
        )
        torch.manual_seed(seed)
        want.append(levels(theirs(as_tensor(torch, FILM))))
    # PIL rounds to whole levels after each of its two passes.
    measure("tensor crop, grey levels", np.array(got, float), np.array(want), 1.01)


def test_an_affine_map_is_torchvisions_with_nearest_neighbours(torch, tv, measure):
    theirs = tv.RandomAffine(10, (0.1, 0.1), (0.9, 1.1), fill=0)
    got, want, tensors = [], [], []
    for seed in SEEDS:
        got.append(augment.random_affine(SQUARE, Draws(torch, seed)))
        torch.manual_seed(seed)
        want.append(np.asarray(theirs(Image.fromarray(SQUARE))))
        torch.manual_seed(seed)
        tensors.append(np.rint(levels(theirs(as_tensor(torch, SQUARE)))))
    got = np.array(got, float)
    measure("affine, grey levels", got, np.array(want, float), 0.0)
    # Where a point falls between two pixels, tensors may take the other one.
    measure(
        "affine of a tensor, share of other pixels",
        np.mean(got != np.array(tensors)),
        0.0,
        2e-3,
    )


def test_jitter_is_torchvisions_to_a_rounding(torch, tv, measure):
    class Given:
        def __init__(self, factors, order):
            self.factors, self.order = factors, order

        def uniform(self, low, high, n):
            assert (low, high, n) == (0.8, 1.2, 2)
            return np.array(self.factors)

        def permutation(self, n):
            return np.array(self.order)

    f = tv.functional
    steps = (f.adjust_brightness, f.adjust_contrast)
    colour = np.stack([SQUARE, SQUARE[::-1], 255 - SQUARE], -1)
    got, want = [], []
    for image in (SQUARE, colour):
        for factors in ((0.8, 1.2), (1.2, 0.8), (1.13, 1.07), (0.91, 0.84)):
            for order in ((0, 1), (1, 0)):
                got.append(augment.jitter(image, Given(factors, order)).reshape(-1))
                x = torch.from_numpy(image.astype(np.float32) / 255)
                x = x[None] if image.ndim == 2 else x.permute(2, 0, 1)
                for step in order:
                    x = steps[step](x, factors[step])
                want.append((255 * x.permute(1, 2, 0).numpy()).reshape(-1))
    error = max(float(np.abs(g - w).max()) for g, w in zip(got, want, strict=True))
    measure("jitter, grey levels", np.float64(error), 0.0, 0.51)


def test_blur_is_torchvisions_to_a_rounding(torch, tv, measure):
    got, want = [], []
    for sigma in (0.1, 0.4, 0.9, 1.5, 2.0):
        got.append(augment.blur(SQUARE, sigma))
        blurred = tv.functional.gaussian_blur(
            as_tensor(torch, SQUARE), [5, 5], [sigma, sigma]
        )
        want.append(levels(blurred))
    measure("blur, grey levels", np.array(got, float), np.array(want), 1.01)


def test_an_erased_rectangle_is_torchvisions(torch, tv, measure):
    theirs = tv.RandomErasing(p=1.0, scale=(0.02, 0.1), ratio=(0.3, 3.3), value=0)
    mean = np.float32([0.485, 0.456, 0.406])
    std = np.float32([0.229, 0.224, 0.225])
    rgb = images.to_rgb(SQUARE)
    got, want = [], []
    for seed in SEEDS:
        draws = Draws(torch, seed)
        draws.random()  # torchvision draws first whether to erase
        erased = augment.erase(rgb, draws)
        got.append((erased / np.float32(255) - mean) / std)
        normal = ((rgb / np.float32(255) - mean) / std).transpose(2, 0, 1)
        torch.manual_seed(seed)
        want.append(theirs(torch.from_numpy(normal)).numpy().transpose(1, 2, 0))
    measure(
        "erased, normalised units", np.array(got), np.array(want), 0.51 / 255 / 0.224
    )


def test_a_flip_is_torchvisions_and_as_likely(torch, tv):
    flipped = [augment.random_flip(FILM, 0.5, Draws(torch, seed)) for seed in SEEDS]
    theirs = tv.RandomHorizontalFlip(0.5)
    for seed, got in zip(SEEDS, flipped, strict=True):
        torch.manual_seed(seed)
        np.testing.assert_array_equal(got, np.asarray(theirs(Image.fromarray(FILM))))
