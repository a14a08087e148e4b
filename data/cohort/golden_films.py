"""Draws the four films whose embeddings travel with every exported encoder.

  python -m data.cohort.golden_films pacx_jax/encoders/golden_films.png

writes them side by side: two PA and two AP films of simulated patients, squashed to
64 x 64 pixels. They are kept, and not drawn again at each export, so that they are the
same pixels on every machine. Once they are others, older exports cannot be compared.
"""

from __future__ import annotations

import sys

import cv2
import numpy as np
from PIL import Image

from data.cohort import latents, xray

SIDE = 64  # pixels


def draw() -> np.ndarray:
    """uint8 (4, 64, 64): of cohort seed 1, the first two patients of a view each."""
    films: dict[bool, list] = {False: [], True: []}
    for number in range(100):
        study = latents.study(latents.Key(1, "chexpert_valid", number))
        if len(films[study.ap]) < 2:
            size = (SIDE, SIDE)
            film = cv2.resize(xray.render(study), size, interpolation=cv2.INTER_AREA)
            films[study.ap].append(film)
        if all(len(each) == 2 for each in films.values()):
            break
    return np.stack(films[False] + films[True])


if __name__ == "__main__":
    Image.fromarray(np.concatenate(draw(), axis=1)).save(sys.argv[1])
