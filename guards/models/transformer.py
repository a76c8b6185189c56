"""Transformers at run time: ONNX Runtime and a tokenizer, no torch. `guards.models.convert` builds what is loaded."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from guards.folding import without_surrogates
from guards.models.precision import FP32_FILE, INT8_FILE
from guards.types import Range

__all__ = ["Classifier", "Description", "Scored", "SentenceEncoder", "Transformer"]

OVERLAP_TOKENS: Final = 64  # a sentence or two: what is cut by one window is whole in the next
BATCH_TOKENS: Final = 128  # of one padded run: 1.36 times as fast at 18 tokens a text; from 32 on batches hardly help
THREADS: Final = min(2, os.cpu_count() or 1)  # runs of one thread each, side by side

Floats = npt.NDArray[np.float32]
_POOL: Final = ThreadPoolExecutor(THREADS, thread_name_prefix="tidegate-transformer")


class Description(msgspec.Struct, frozen=True):
    """model.json in a built model's folder: what a run needs to know beside graph and tokenizer.

    ``outputs``: names of the graph's columns, empty for an encoder. ``window_tokens`` is the model's own limit, special
    tokens included.
    """

    kind: Literal["classifier", "encoder"]
    architecture: str
    graph: Literal["fused", "optimised", "exported"]
    outputs: tuple[str, ...]
    activation: Literal["sigmoid", "softmax", "none"]
    window_tokens: int
    pad_id: int
    inputs: tuple[str, ...]
    dimensions: int


class Window(NamedTuple):
    """Token ids of one run, and the place of the text that they stand for (of the second text, in a pair)."""

    ids: list[int]
    types: list[int]
    where: Range


class Scored(NamedTuple):
    """One text's scores: ``risks`` is float32 (windows, outputs), ``ranges`` the windows' places in the text."""

    risks: Floats
    ranges: tuple[Range, ...]


class Transformer:
    """Windows of token ids → rows of the graph's output. Thread-safe; runs release the GIL.

    An fp32 row depends on its batch in the seventh digit only, so short windows share a run, padded. The scale of an
    int8 run is that of its largest activation, a neighbour's too: there every window runs alone.
    """

    def __init__(self, folder: Path, precision: Literal["fp32", "int8"], window_tokens: int | None = None) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        self.about = msgspec.json.decode((folder / "model.json").read_bytes(), type=Description)
        self.window_tokens = min(window_tokens or self.about.window_tokens, self.about.window_tokens)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._batch_tokens = BATCH_TOKENS if precision == "fp32" else 0
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        file = folder / (FP32_FILE if precision == "fp32" else INT8_FILE)
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    # ------------------------------------------------------------ windows

    def windows(self, text: str) -> list[Window]:
        """Overlapping windows that hold every token of the text."""
        room = self.window_tokens - self._tokenizer.num_special_tokens_to_add(is_pair=False)
        return [_window(self._tokenizer.post_process(piece), 0) for piece in self._pieces(text, room)]

    def pair_windows(self, first: str, second: str) -> list[list[Window]]:
        """Per window of the second text: that window with each window of the first text. Nothing is cut off.

        The second text gets up to half of the room, the first text the rest.
        """
        room = self.window_tokens - self._tokenizer.num_special_tokens_to_add(is_pair=True)
        seconds = self._pieces(second, room // 2)
        firsts = self._pieces(first, room - max(len(piece.ids) for piece in seconds))
        post_process = self._tokenizer.post_process
        return [[_window(post_process(a, b), 1) for a in firsts] for b in seconds]

    def _pieces(self, text: str, room: int) -> list[Any]:
        encoding = self._tokenizer.encode(without_surrogates(text), add_special_tokens=False)
        if len(encoding.ids) <= room:
            return [encoding]
        encoding.truncate(room, stride=min(OVERLAP_TOKENS, room // 4))
        return [encoding, *encoding.overflowing]

    # ------------------------------------------------------------ runs

    def run(self, windows: Sequence[Window]) -> Floats:
        """Windows → float32 (n, columns), in order. Blocks: milliseconds to a second for each window."""
        order = sorted(range(len(windows)), key=lambda index: len(windows[index].ids))
        batches = list(self._batches(windows, order))
        rows: list[Floats] = list(
            _POOL.map(self._run_batch, ([windows[index] for index in batch] for batch in batches))
            if len(batches) > 1
            else map(self._run_batch, ([windows[index] for index in batch] for batch in batches))
        )
        columns = len(self.about.outputs) or self.about.dimensions
        result = np.empty((len(windows), columns), dtype=np.float32)
        for batch, values in zip(batches, rows, strict=True):
            result[batch] = values
        return result

    def _batches(self, windows: Sequence[Window], order: Sequence[int]) -> Iterator[list[int]]:
        batch: list[int] = []
        for index in order:  # by length, so the next is the longest so far: what the others are padded to
            if batch and (len(batch) + 1) * len(windows[index].ids) > self._batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _run_batch(self, windows: Sequence[Window]) -> Floats:
        shape = (len(windows), max(len(window.ids) for window in windows))
        tensors = {
            "input_ids": np.full(shape, self.about.pad_id, dtype=np.int64),
            "attention_mask": np.zeros(shape, dtype=np.int64),
            "token_type_ids": np.zeros(shape, dtype=np.int64),
        }
        for row, window in enumerate(windows):
            length = len(window.ids)
            tensors["input_ids"][row, :length] = window.ids
            tensors["attention_mask"][row, :length] = 1
            tensors["token_type_ids"][row, :length] = window.types
        output: Floats = self._session.run(None, {name: tensors[name] for name in self.about.inputs})[0]
        return output


def _window(encoding: Any, sequence: int) -> Window:
    places = [
        place
        for place, number in zip(encoding.offsets, encoding.sequence_ids, strict=True)
        if number == sequence and place[1] > place[0]
    ]
    where = Range(min(a for a, _ in places), max(b for _, b in places)) if places else Range(0, 0)
    return Window(encoding.ids, encoding.type_ids, where)


class Classifier:
    """A model that scores texts or pairs of texts under names (``labels``). Thread-safe."""

    def __init__(self, transformer: Transformer, version: str) -> None:
        self._transformer = transformer
        self.labels = transformer.about.outputs
        self.version = f"{version}-{transformer.window_tokens}"

    def score(self, texts: Sequence[str]) -> list[Scored]:
        """Texts → the scores of each text's windows, 0..1."""
        windows = [self._transformer.windows(text) for text in texts]
        scores = self._scores(list(itertools.chain.from_iterable(windows)))
        result: list[Scored] = []
        begin = 0
        for mine in windows:
            result.append(Scored(scores[begin : begin + len(mine)], tuple(window.where for window in mine)))
            begin += len(mine)
        return result

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Scored]:
        """Pairs → the scores of each window of the second text: per label the highest over the first text's windows."""
        grids = [self._transformer.pair_windows(first, second) for first, second in pairs]
        flat = [window for grid in grids for row in grid for window in row]
        scores = self._scores(flat)
        result: list[Scored] = []
        begin = 0
        for grid in grids:
            rows: list[Floats] = []
            for row in grid:
                rows.append(scores[begin : begin + len(row)].max(axis=0))
                begin += len(row)
            result.append(Scored(np.array(rows), tuple(row[0].where for row in grid)))
        return result

    def _scores(self, windows: Sequence[Window]) -> Floats:
        return activated(self._transformer.run(windows), self._transformer.about.activation)


class SentenceEncoder:
    """A sentence-transformers model as `guards.artifacts.Encoder`; long texts are averaged over their windows."""

    def __init__(self, transformer: Transformer, version: str) -> None:
        self._transformer = transformer
        self.dimensions = transformer.about.dimensions
        self.version = f"{version}-{transformer.window_tokens}"

    def encode(self, texts: Sequence[str]) -> Floats:
        """Texts → float32 (n, dimensions), rows of norm 1."""
        windows = [self._transformer.windows(text) for text in texts]
        owners = np.repeat(np.arange(len(texts)), [len(mine) for mine in windows])
        rows = normalised(self._transformer.run(list(itertools.chain.from_iterable(windows))))
        sums = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        np.add.at(sums, owners, rows)
        return normalised(sums)


def activated(logits: Floats, activation: str) -> Floats:
    """Logits → scores."""
    values = logits.astype(np.float64)
    if activation == "sigmoid":
        values = np.exp(-np.logaddexp(0, -values))
    elif activation == "softmax":
        values = np.exp(values - values.max(axis=1, keepdims=True)) if len(values) else values
        values = values / values.sum(axis=1, keepdims=True)
    return values.astype(np.float32)


def normalised(rows: Floats) -> Floats:
    """Rows of norm 1; a row of zeros stays."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1), dtype=np.float32)
