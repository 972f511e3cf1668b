"""An embedder as a store uses it: under a number of the store's catalog, and trusted with nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qilbee_core.catalog import Catalog, CatalogModel, Vectors
from qilbee_core.errors import PluginError, SettingsError
from qilbee_core.interfaces import Embedder
from qilbee_core.search.analysis import ANALYSER_VERSION
from qilbee_core.search.vectors import rounded

__all__ = ["Encoder", "chosen_encoder", "model_of"]


class Encoder:
    """What an embedder gives is checked here: a plugin's mistake must be told, and not stored."""

    def __init__(self, embedder: Embedder, number: int) -> None:
        self.name = embedder.name
        self.dimensions = embedder.dimensions
        self.number = number
        """Of the model in the catalog."""
        self._embedder = embedder

    def encode(self, texts: Sequence[str]) -> NDArray[np.int8]:
        """The vectors of some texts as they are stored; PluginError where it fails, or gives anything else."""
        return rounded(self._embed(texts))

    def encode_query(self, text: str) -> NDArray[np.float32]:
        """The vector of what is asked; PluginError as above."""
        query: NDArray[np.float32] = self._embed([text])[0]
        return query

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        try:
            vectors = np.asarray(self._embedder.embed(texts), np.float32)
        except PluginError:
            raise
        except Exception as error:  # whatever a plugin or its library raises
            raise PluginError(f"embedder {self.name!r} failed: {error!r}") from error
        if vectors.shape != (len(texts), self.dimensions):
            raise PluginError(
                f"embedder {self.name!r} gave an array of the shape {vectors.shape} "
                f"for {len(texts)} texts, not {(len(texts), self.dimensions)}"
            )
        if not np.isfinite(vectors).all() or not np.abs(vectors).max(axis=1, initial=0).all():
            raise PluginError(f"embedder {self.name!r} gave a vector with numbers that are not finite, or all zero")
        return vectors


def model_of(embedder: Embedder, provider: str, distribution: str) -> CatalogModel:
    """What a store remembers of an embedder; PluginError where that does not say what it is."""
    name, dimensions = getattr(embedder, "name", None), getattr(embedder, "dimensions", None)
    if not isinstance(name, str) or not name or type(dimensions) is not int or dimensions < 1:
        raise PluginError(
            f"embedder {provider!r} of {distribution} has the name {name!r} and {dimensions!r} dimensions",
            remedy="both are attributes that are known before anything is asked: see docs/plugins.md",
        )
    return CatalogModel(embedder.name, embedder.dimensions, ANALYSER_VERSION, provider, distribution)


def chosen_encoder(catalog: Catalog, embedder: Embedder, model: CatalogModel, *, read_only: bool) -> Encoder | None:
    """The encoder that a store is opened with; SettingsError where its vectors are of another one.

    A store without vectors begins to make some; None where it must not be written to.
    """
    now = catalog.vectors
    if now.model:
        known = catalog.model(now.model)
        if known.is_same(model):
            return Encoder(embedder, now.model)
        raise SettingsError(
            f"the vectors of this store are of {_told(known)}, and search.embedder {model.provider!r} gives those of "
            f"{_told(model)}",
            remedy=f"open it with embedder {known.provider!r}, or with 'static' and call reembed({model.provider!r})",
        )
    if read_only:
        return None
    number = catalog.model_number(model)
    leaving = {*now.leaving, now.building} - {number, 0}
    catalog.keep_vectors(Vectors(number, 0, tuple(sorted(leaving))))
    return Encoder(embedder, number)


def _told(model: CatalogModel) -> str:
    """A model in words."""
    return f"{model.model!r} with {model.dimensions} numbers, texts of version {model.analyser_version}"
