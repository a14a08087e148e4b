"""Small sets of reports that tests share, and a source that holds them."""

from __future__ import annotations

import random

from pacx_jax.errors import PacxError

NOUNS = ("effusion", "edema", "pneumothorax", "consolidation", "cardiomegaly")
FORMS = ("No {}.", "There is {}.", "Possible {}.", "{} is unchanged.", "Small {}.")


def texts(n: int, seed: int = 0) -> list[str]:
    """Reports of two or three sentences, some of them alike."""
    rng = random.Random(seed)
    return [
        " ".join(rng.choice(FORMS).format(rng.choice(NOUNS)) for _ in range(2 + i % 2))
        for i in range(n)
    ]


class Source:
    """Examples in memory; None stands for one that cannot be read."""

    namespace = "of the tests"
    label_names, notes = (), ()

    def __init__(self, examples, split="train"):
        self.examples, self.split = list(examples), split
        self.entries = tuple(next(filter(None, self.examples), {"path": ""}))
        self.fingerprint = f"{len(self.examples)} examples"

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, i):
        if self.examples[i] is None:
            raise PacxError("damaged")
        return self.examples[i]

    def name(self, i):
        return f"{self.split}[{i}]"


def example(patient, study, impression, findings="", view=0):
    """One image of a study."""
    return {"path": f"p{patient}/s{study}/{view}.jpg", "patient_id": str(patient),
            "study_id": str(study), "findings": findings,
            "impression": impression}  # fmt: skip


def source(n: int = 200, split: str = "train") -> Source:
    """n studies of one or two images, each of another patient."""
    return Source(
        (
            example(i, 1, text, view=view)
            for i, text in enumerate(texts(n))
            for view in range(1 + i % 2)
        ),
        split,
    )
