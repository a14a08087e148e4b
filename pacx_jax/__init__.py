"""PaCX-MAE in JAX: chest-X-ray encoders that know physiology (arXiv 2606.01537)."""

from pacx_jax.encoder import Encoder, load_encoder

__all__ = ["Encoder", "load_encoder"]
__version__ = "0.1.0"
