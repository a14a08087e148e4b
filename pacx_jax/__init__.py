"""PaCX-MAE in JAX: chest-X-ray encoders that know physiology (arXiv 2606.01537)."""

__all__ = ["Encoder", "load_encoder"]
__version__ = "0.1.0"


def __getattr__(name: str):
    # Imported lazily: commands without JAX start at once.
    if name in __all__:
        from pacx_jax.encoders import xray_encoder

        return getattr(xray_encoder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
