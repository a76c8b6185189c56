"""The one shared sentence encoder: all-MiniLM-L6-v2 in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from guards.folding import without_surrogates
from guards.models.minilm import GRAPH_FILE, GRAPH_VERSION, NAME

__all__ = ["DIMENSIONS", "OVERLAP_TOKENS", "WINDOW_TOKENS", "MiniLmEncoder"]

DIMENSIONS: Final = 384
WINDOW_TOKENS: Final = 256  # with [CLS] and [SEP]: what the model was trained to read
OVERLAP_TOKENS: Final = 32  # a sentence that a window cuts stands whole in the next one


class MiniLmEncoder:
    """Texts → embeddings (see `guards.artifacts.Encoder`). Loads in about half a second, holds about 150 MB.

    Every window is a run of its own (a batch of one), so an embedding is the same to the bit whatever else is encoded
    with it: caches, batches and replays agree. May be called from several threads; each run uses one thread and
    releases the GIL. An empty text has the embedding of no words; NULs are ignored by the tokenizer.
    """

    dimensions = DIMENSIONS

    def __init__(self, folder: Path, graph_file: str = GRAPH_FILE) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        variant = graph_file.removesuffix(".onnx").partition(".")[2] or "fp32"
        self.version = f"{NAME}-{GRAPH_VERSION}-{variant}"
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._cls = self._tokenizer.token_to_id("[CLS]")
        self._sep = self._tokenizer.token_to_id("[SEP]")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(folder / graph_file), sess_options=options, providers=["CPUExecutionProvider"]
        )

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Texts → float32 (n, 384), rows of norm 1. Blocks for 0.2 to 0.4 ms a token; nothing is cut off."""
        rows = np.empty((len(texts), DIMENSIONS), dtype=np.float32)
        for index, text in enumerate(texts):
            total = np.zeros(DIMENSIONS, dtype=np.float32)
            for window in self._windows(text):
                total += _normalised(self._session.run(["embedding"], {"input_ids": window})[0][0])
            rows[index] = _normalised(total)
        return rows

    def _windows(self, text: str) -> Iterator[npt.NDArray[np.int32]]:
        ids = self._tokenizer.encode(without_surrogates(text), add_special_tokens=False).ids
        room = WINDOW_TOKENS - 2
        for start in _starts(len(ids), room, room - OVERLAP_TOKENS):
            yield np.array([[self._cls, *ids[start : start + room], self._sep]], dtype=np.int32)


def _starts(length: int, room: int, step: int) -> list[int]:
    """Where the windows begin; the last one is moved back so that it is full too."""
    if length <= room:
        return [0]
    return [*range(0, length - room, step), length - room]


def _normalised(vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    norm = float(np.linalg.norm(vector))
    return vector / np.float32(norm) if norm > 0 else vector
