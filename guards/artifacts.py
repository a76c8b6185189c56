"""What guards share: sentence embeddings and named entities, each computed once per text, in bounded caches."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from guards.outside import Outside

__all__ = ["Artifacts", "Cache", "Encoder", "Entity", "EntityParser", "Vector"]

Vector = npt.NDArray[np.float32]
"""An L2-normalised embedding; the cosine of two is their dot product."""

V = TypeVar("V")


class Entity(msgspec.Struct, frozen=True):
    """A named entity: code points ``start`` to ``end`` (exclusive) and the model's own label (`PERSON`, `GPE`, …)."""

    start: int
    end: int
    label: str


class Encoder(Protocol):
    """The one shared sentence encoder."""

    @property
    def version(self) -> str:
        """Which model, and which variant of it: a part of the version of each guard that reads embeddings."""

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Texts → array (n, dim), rows L2-normalised. A row depends on its own text only, not on the batch.

        Long texts are cut into windows that overlap and averaged: nothing is ignored. Releases the GIL.
        """


class EntityParser(Protocol):
    """The one shared named-entity model."""

    def parse(self, texts: Sequence[str]) -> Sequence[tuple[Entity, ...]]:
        """Texts → entities of each, in order."""


class Cache(Generic[V]):
    """A bounded, thread-safe LRU map. ``size`` is in entries."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._data: OrderedDict[object, V] = OrderedDict()
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    def get(self, key: object) -> V | None:
        with self._lock:
            value = self._data.get(key)
            if value is None:
                self.misses += 1
                return None
            self.hits += 1
            self._data.move_to_end(key)
            return value

    def put(self, key: object, value: V) -> None:
        with self._lock:
            self._data[key] = value
            self._data.move_to_end(key)
            while len(self._data) > self._size:
                self._data.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._data.clear()

    def __len__(self) -> int:
        return len(self._data)


class Artifacts:
    """Embeddings and entities of texts.

    `prepare` computes what is missing, the encoder in a thread beside the entity model (the encoder releases the
    GIL). `embedding` and `entities` then read; a text that nobody announced is computed on the spot.
    ``outside`` is there only where slow guards run.
    """

    def __init__(
        self,
        encoder: Callable[[], Encoder] | None,
        parser: Callable[[], EntityParser] | None,
        *,
        outside: Outside | None = None,
        cache_size: int = 20_000,
    ) -> None:
        self._outside = outside
        self._encoder = encoder
        self._parser = parser
        # 20,000 embeddings of 384 float32 are 30 MB; entities of as many texts are less.
        self._embeddings: Cache[Vector] = Cache(cache_size)
        self._entities: Cache[tuple[Entity, ...]] = Cache(cache_size)
        self._side = ThreadPoolExecutor(max_workers=2, thread_name_prefix="tidegate-encoder")

    @property
    def outside(self) -> Outside:
        """The way to services, for slow guards. Raises `RuntimeError` in a process that runs none."""
        if self._outside is None:
            raise RuntimeError("slow guards run in `tidegate worker slow` only")
        return self._outside

    def prepare(self, embed: Iterable[str], parse: Iterable[str]) -> dict[str, float]:
        """Compute what is not cached; returns the milliseconds spent by artifact."""
        wanted = [text for text in dict.fromkeys(embed) if self._embeddings.get(text) is None]
        unparsed = [text for text in dict.fromkeys(parse) if self._entities.get(text) is None]
        spent_ms: dict[str, float] = {}
        # Two halves on two threads: two one-thread sessions are as fast as one with two threads.
        halves = [half for half in (wanted[0::2], wanted[1::2]) if half]
        futures = [self._side.submit(self._encode, half) for half in halves]
        try:
            if unparsed:
                began = perf_counter()
                self._parse(unparsed)
                spent_ms["entities"] = (perf_counter() - began) * 1000
        finally:
            times = [future.result() for future in futures]
        if times:
            spent_ms["embeddings"] = max(times)
        return spent_ms

    def _encode(self, texts: Sequence[str]) -> float:
        if self._encoder is None:
            raise RuntimeError("a guard needs embeddings, and this engine was made without an encoder")
        began = perf_counter()
        for text, vector in zip(texts, self._encoder().encode(texts), strict=True):
            self._embeddings.put(text, vector)
        return (perf_counter() - began) * 1000

    def _parse(self, texts: Sequence[str]) -> None:
        if self._parser is None:
            raise RuntimeError("a guard needs entities, and this engine was made without an entity model")
        for text, entities in zip(texts, self._parser().parse(texts), strict=True):
            self._entities.put(text, entities)

    def forget(self) -> None:
        """Empty the caches."""
        self._embeddings.clear()
        self._entities.clear()

    def embedding(self, text: str) -> Vector:
        """The L2-normalised embedding of the text, shape (dim,)."""
        found = self._embeddings.get(text)
        if found is None:
            self._encode([text])
            found = self._embeddings.get(text)
            assert found is not None
        return found

    def entities(self, text: str) -> tuple[Entity, ...]:
        """The named entities of the text, in order of their start."""
        found = self._entities.get(text)
        if found is None:
            self._parse([text])
            found = self._entities.get(text)
            assert found is not None
        return found
