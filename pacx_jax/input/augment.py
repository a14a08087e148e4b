"""Random crops, flips and the distillation augmentation, on uint8 images.

Every draw comes from the generator in the argument. Grey images stay (h, w) until
the end, for work on one channel is a third of the work on three equal ones.
docs/method.md lists the published values; the sampling follows torchvision.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from PIL import Image

from pacx_jax.input import images
from pacx_jax.input.normalize import IMAGENET_MEAN

# What is erased becomes 0 after normalisation, to within half a grey level.
_MEAN_GREY = np.rint(255 * np.array(IMAGENET_MEAN)).astype(np.uint8)


def tripled(image: np.ndarray) -> np.ndarray:
    """(s, s) or (s, s, 3) -> (s, s, 3)."""
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image


def shaped(image: np.ndarray, channels: int) -> np.ndarray:
    """(s, s) or (s, s, 3) -> (s, s, channels), 1 or 3; colour to grey by PIL's luma."""
    return tripled(image) if channels == 3 else images.to_grey(image)


def random_flip(
    image: np.ndarray, probability: float, rng: np.random.Generator
) -> np.ndarray:
    """Mirrors left and right with the given probability; always one draw."""
    return cv2.flip(image, 1) if rng.random() < probability else image


def random_flip_and_turn(
    arrays: list[np.ndarray],
    hflip: float,
    degrees: float,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """The same mirroring and rotation of uint8 images and masks of one size.

    Args:
      arrays: (s, s[, 3]) each.
      hflip: probability of mirroring left and right; always one draw.
      degrees: the angle is uniform in +- this, about the centre, by nearest
        neighbours on 0, as torchvision's `rotate` of PIL images; one draw.
      rng: source of the draws.
    """
    step = -1 if rng.random() < hflip else 1
    angle = rng.uniform(-degrees, degrees)
    turned = []
    for array in arrays:
        image = Image.fromarray(np.ascontiguousarray(array[:, ::step]))
        turned.append(np.asarray(image.rotate(angle, Image.Resampling.NEAREST)))
    return turned


def random_resized_crop(
    image: np.ndarray,
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> np.ndarray:
    """A random box resized to (s, s[, 3]) by PIL's antialiased bilinear filter.

    Args:
      image: uint8 (h, w) or (h, w, 3).
      size: s in pixels.
      scale: the box's share of the image's area, uniform in this range.
      ratio: its width over its height, log-uniform in this range.
      rng: source of the draws.
    """
    top, left, height, width = random_box(*image.shape[:2], scale, ratio, rng)
    crop = image[top : top + height, left : left + width]
    return images.resize_to(crop, size, size)


def distillation(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """The training augmentation of Stage 2: uint8 (h, w[, 3]) -> uint8 (s, s, 3).

    Crop of 75 to 100% of the area; 60%: rotation within 10 degrees, shift within
    10%, scale 0.9 to 1.1, nearest neighbour on black; 30%: brightness and contrast
    within 20%; 15%: Gaussian blur, 5 x 5, sigma 0.1 to 2; 25%: a rectangle of 2 to
    10% erased. No flip: the heart is on the left.
    """
    image = random_resized_crop(image, size, (0.75, 1.0), (0.85, 1.15), rng)
    if rng.random() < 0.6:
        image = random_affine(image, rng)
    if rng.random() < 0.3:
        image = jitter(image, rng)
    if rng.random() < 0.15:
        image = blur(image, rng.uniform(0.1, 2.0))
    if rng.random() < 0.25:
        return erase(images.to_rgb(image), rng)
    return tripled(image)


def random_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop: (top, left, height, width)."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(height - h + 1))
            return top, int(rng.integers(width - w + 1)), h, w
    # No box fits: the largest central one whose ratio is allowed.
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w = min(width, max(round(height * aspect), 1))
    h = min(height, max(round(width / aspect), 1))
    return (height - h) // 2, (width - w) // 2, h, w


def random_affine(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The rotation, shift and scaling of `distillation`, as torchvision's RandomAffine.

    uint8 (h, w[, 3]) in and out; what comes from outside of the image is black.
    """
    height, width = image.shape[:2]
    angle = math.radians(rng.uniform(-10, 10))
    shift_x = round(rng.uniform(-0.1, 0.1) * width)
    shift_y = round(rng.uniform(-0.1, 0.1) * height)
    scale = rng.uniform(0.9, 1.1)
    # PIL wants the map from output to input: undo the shift, then turn and scale
    # back, all about the centre.
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    x, y = width / 2, height / 2
    matrix = (
        *(cos, sin, x - cos * (x + shift_x) - sin * (y + shift_y)),
        *(-sin, cos, y + sin * (x + shift_x) - cos * (y + shift_y)),
    )
    turned = Image.fromarray(image).transform(
        (width, height),
        Image.Transform.AFFINE,
        matrix,
        Image.Resampling.NEAREST,
        fillcolor=0 if image.ndim == 2 else (0, 0, 0),
    )
    return np.asarray(turned)


def jitter(
    image: np.ndarray, rng: np.random.Generator, amount: float = 0.2
) -> np.ndarray:
    """Brightness and contrast, in random order, each by a factor of 1 +- `amount`."""
    brightness, contrast = rng.uniform(1 - amount, 1 + amount, 2)
    x = image.astype(np.float32)
    for step in rng.permutation(2):
        if step == 0:
            x = x * np.float32(brightness)
        else:
            grey = x if x.ndim == 2 else x @ np.float32([0.299, 0.587, 0.114])
            x = (x - grey.mean()) * np.float32(contrast) + grey.mean()
        x = np.clip(x, 0, 255)
    return np.rint(x).astype(np.uint8)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of 5 x 5 pixels, mirrored at the border."""
    return cv2.GaussianBlur(image, (5, 5), sigma, borderType=cv2.BORDER_REFLECT_101)


def erase(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Puts the mean colour on one rectangle, as torchvision's RandomErasing."""
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(0.02, 0.1)
        aspect = math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top = int(rng.integers(height - h + 1))
            left = int(rng.integers(width - w + 1))
            image = image.copy()
            image[top : top + h, left : left + w] = _MEAN_GREY
            return image
    return image
