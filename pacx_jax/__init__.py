"""PaCX-MAE in JAX: chest-X-ray encoders that know physiology (arXiv 2606.01537).

  load_encoder(path)             X-rays to embeddings: encoder(images), encoder.tokens
  rollout(encoder, images)       which patches an embedding drew on
  fit_probe(encoder, x, labels)  a calibrated classifier from images and labels
  Classifier.load(path)          a finished classifier: predict, thresholds, save
  recipes.mae_vitb16("runlocal") a run's configuration, as in configs/
  train(config, workdir)         trains it, also on images in memory

docs/api.md has an example of each.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Public name -> where it is. Imported when asked for: commands without JAX start at
# once.
_PUBLIC = {
    "Classifier": "pacx_jax.evaluate.classifier",
    "Encoder": "pacx_jax.encoders.xray_encoder",
    "fit_probe": "pacx_jax.evaluate.fit_probe",
    "load_encoder": "pacx_jax.encoders.xray_encoder",
    "recipes": "pacx_jax.recipes",
    "rollout": "pacx_jax.evaluate.rollout",
    "train": "pacx_jax.training",
}
__all__ = [
    "Classifier",
    "Encoder",
    "fit_probe",
    "load_encoder",
    "recipes",
    "rollout",
    "train",
]

if TYPE_CHECKING:  # the same names for type checkers and editors
    from pacx_jax import recipes as recipes
    from pacx_jax.encoders.xray_encoder import Encoder as Encoder
    from pacx_jax.encoders.xray_encoder import load_encoder as load_encoder
    from pacx_jax.evaluate.classifier import Classifier as Classifier
    from pacx_jax.evaluate.fit_probe import fit_probe as fit_probe
    from pacx_jax.evaluate.rollout import rollout as rollout
    from pacx_jax.training import train as train
else:  # hidden from checkers, which would take any name for public

    def __getattr__(name: str):
        if name in _PUBLIC:
            module = importlib.import_module(_PUBLIC[name])
            return module if name == "recipes" else getattr(module, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
