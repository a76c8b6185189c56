"""Labelled files: JSON Lines or one JSON array, plain or gzipped, in one of five forms told by their fields.

========== ================================================= =================================================
form       fields                                            the label says
========== ================================================= =================================================
text       text, label                                       1: the guard should find something
spans      text, spans [{start, end, label}]                 what is to be found, code points, end exclusive
answer     response, label [, question, context, reference]  1: the answer is bad
passage    question, context, answer_sentence [, paragraph]  which sentence of the context answers
candidates question, candidates, right (index or indices)    which candidate answers
========== ================================================= =================================================

All may have ``language``; text and spans ``role``; text and answer a group (`GROUP_FIELDS`). Other fields are ignored.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Protocol, get_args

import msgspec

from guards.errors import ConfigError
from guards.evaluation.spans import Labelled, Place
from guards.sentences import sentences
from guards.types import Document, Exchange, Message, Stage

__all__ = [
    "GROUP_FIELDS",
    "AnswerRow",
    "LabelledFile",
    "Pool",
    "RankingRow",
    "Row",
    "SpanRow",
    "TextRow",
    "read",
]

GROUP_FIELDS: Final = ("functionality", "kind", "attack_type")
"""Where a row's group stands, for figures by group (``by_label``); the first of them that it has."""

MAX_FAULTS: Final = 10  # faults told of a file; the rest are counted

Label = bool | Annotated[int, msgspec.Meta(ge=0, le=1)]
Offset = Annotated[int, msgspec.Meta(ge=0)]
Role = Literal["user", "assistant", "system", "tool", "document"]


class Row(Protocol):
    """One labelled row. Each of its exchanges is put to the guard."""

    @property
    def language(self) -> str: ...

    def exchanges(self, stage: Stage, role: Role | None) -> Sequence[Exchange]:
        """What the guard is to look at; ``role``: of a text, where the row does not say it."""


def _text_exchange(text: str, stage: Stage, role: Role | None) -> Exchange:
    if stage == "response":
        return Exchange(response=[Message(role or "assistant", text)])
    if role == "document":
        return Exchange(messages=[], documents=[Document(text)])
    return Exchange(messages=[Message(role or "user", text)])


class TextRow(msgspec.Struct, frozen=True):
    text: str
    label: Label
    language: str = ""
    group: str = ""
    role: Role | None = None

    def exchanges(self, stage: Stage, role: Role | None) -> Sequence[Exchange]:
        return (_text_exchange(self.text, stage, self.role or role),)


class _RawSpan(msgspec.Struct, frozen=True):
    start: Offset
    end: Offset
    label: str = ""


class SpanRow(msgspec.Struct, frozen=True):
    text: str
    spans: tuple[_RawSpan, ...]
    language: str = ""
    role: Role | None = None

    def __post_init__(self) -> None:
        if any(not span.start < span.end <= len(self.text) for span in self.spans):
            raise ValueError(f"a span lies outside the text or is empty; the text has {len(self.text)} characters")

    def exchanges(self, stage: Stage, role: Role | None) -> Sequence[Exchange]:
        return (_text_exchange(self.text, stage, self.role or role),)

    def labelled(self, labels: frozenset[str]) -> Labelled:
        """The places to find: those of the ``labels``, or all if there are none."""
        places = [Place(span.start, span.end, span.label) for span in self.spans]
        wanted = tuple(place for place in places if not labels or place.label in labels)
        return Labelled(
            len(self.text), wanted, tuple(place for place in places if labels and place.label not in labels)
        )


class AnswerRow(msgspec.Struct, frozen=True):
    response: str
    label: Label
    question: str = ""
    context: str = ""
    reference: str = ""
    language: str = ""
    group: str = ""

    def exchanges(self, stage: Stage, role: Role | None) -> Sequence[Exchange]:
        return (
            Exchange(
                messages=[Message("user", self.question)],
                response=[Message("assistant", self.response)],
                documents=[Document(self.context)] if self.context else [],
                reference=self.reference,
            ),
        )


class Pool(msgspec.Struct, frozen=True):
    """Distinct candidates, and which of them are right."""

    candidates: tuple[str, ...]
    right: frozenset[int]


class RankingRow(msgspec.Struct, frozen=True):
    """``pools``: by name, the first is the one that the headline figures are of. ``pairs``: candidates with the label
    1 where they do not answer the question, for the figures at a threshold."""

    question: str
    pools: Mapping[str, Pool]
    pairs: tuple[tuple[str, int], ...]
    language: str = ""

    @property
    def candidates(self) -> tuple[str, ...]:
        """All of its pools and pairs, each once."""
        pooled = (candidate for pool in self.pools.values() for candidate in pool.candidates)
        return tuple(dict.fromkeys([*pooled, *(candidate for candidate, _ in self.pairs)]))

    def exchanges(self, stage: Stage, role: Role | None) -> Sequence[Exchange]:
        asked = [Message("user", self.question)]
        return [Exchange(messages=asked, response=[Message("assistant", text)]) for text in self.candidates]


class LabelledFile(msgspec.Struct, frozen=True):
    """``form``: all rows are of one. ``total``: rows in the file, of which ``rows`` may be a sample."""

    path: str
    form: str
    rows: tuple[Any, ...]
    total: int


# ---------------------------------------------------------------- the forms that need a second look


class _CandidatesRow(msgspec.Struct, frozen=True):
    question: str
    candidates: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    right: int | tuple[int, ...]
    language: str = ""

    def __post_init__(self) -> None:
        right = self.indices
        if not right or any(not 0 <= index < len(self.candidates) for index in right):
            raise ValueError(f"right: expected an index from 0 to {len(self.candidates) - 1}")

    @property
    def indices(self) -> tuple[int, ...]:
        return (self.right,) if isinstance(self.right, int) else self.right

    def ranking(self) -> RankingRow:
        right = {self.candidates[index] for index in self.indices}
        pool = _pool(self.candidates, right)
        pairs = tuple((text, int(number not in pool.right)) for number, text in enumerate(pool.candidates))
        return RankingRow(self.question, {"candidates": pool}, pairs, self.language)


class _PassageRow(msgspec.Struct, frozen=True):
    question: str
    context: str
    answer_sentence: str
    paragraph: str = ""
    language: str = ""

    def __post_init__(self) -> None:
        if not self.answer_sentence or self.answer_sentence not in self.context:
            raise ValueError("answer_sentence: it is not in the context")
        if not sentences(self.context):
            raise ValueError("context: it has no sentence")

    @property
    def article(self) -> str:
        """``12`` of the paragraph ``12-3``; empty where the paragraph says no article."""
        return self.paragraph.rpartition("-")[0]

    def right(self) -> set[str]:
        """The sentences of which at least half lies in the answer sentence; at least the one that has most of it."""
        start = self.context.index(self.answer_sentence)
        end = start + len(self.answer_sentence)
        shared = [(max(0, min(s.end, end) - max(s.start, start)), s) for s in sentences(self.context)]
        chosen = {sentence.text for chars, sentence in shared if 2 * chars >= sentence.end - sentence.start}
        return chosen or {max(shared, key=lambda item: item[0])[1].text}


def _pool(candidates: Sequence[str], right: set[str]) -> Pool:
    distinct = tuple(dict.fromkeys(candidates))
    return Pool(distinct, frozenset(number for number, text in enumerate(distinct) if text in right))


def _rankings(rows: Sequence[_PassageRow], seed: int) -> list[RankingRow]:
    """The candidates are the sentences of the row's context and, where paragraphs name their article, those of all
    paragraphs of it. The pair that does not fit is a sentence of another article (else of another context)."""
    contexts: dict[str, _PassageRow] = {}
    for row in rows:
        contexts.setdefault(row.context, row)
    cut = {context: [sentence.text for sentence in sentences(context)] for context in contexts}
    articles: dict[str, list[str]] = {}
    for context, row in contexts.items():
        if row.article:
            articles.setdefault(row.article, []).extend(cut[context])
    chosen = random.Random(seed)  # noqa: S311 - a sample, no secret
    order = list(contexts)
    rankings = []
    for row in rows:
        right = row.right()
        pools = {"paragraph": _pool(cut[row.context], right)}
        if len(articles.get(row.article, ())) > len(cut[row.context]):
            pools["article"] = _pool(articles[row.article], right)
        pairs = [(row.answer_sentence, 0)]
        for _ in range(100):  # with one article alone there is no stranger
            other = contexts[chosen.choice(order)]
            if other.context != row.context and (other.article != row.article or not row.article):
                pairs.append((chosen.choice(cut[other.context]), 1))
                break
        rankings.append(RankingRow(row.question, pools, tuple(pairs), row.language))
    return rankings


# ---------------------------------------------------------------- reading

_FORMS: Final[Mapping[str, tuple[frozenset[str], type[msgspec.Struct]]]] = {
    "candidates": (frozenset({"question", "candidates"}), _CandidatesRow),
    "passage": (frozenset({"question", "answer_sentence"}), _PassageRow),
    "spans": (frozenset({"text", "spans"}), SpanRow),
    "answer": (frozenset({"response"}), AnswerRow),
    "text": (frozenset({"text"}), TextRow),
}


def read(
    path: str | Path,
    *,
    fields: Mapping[str, str] | None = None,
    group_by: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> LabelledFile:
    """Read a file. Raises `ConfigError`, one line per fault with file and line; no fault tells a value.

    ``fields``: our name → the file's, where they differ. ``limit``: at most so many rows, drawn by ``seed`` and left in
    order (a file may be sorted by label); candidates come from the whole file all the same.
    """
    renamed = {theirs: ours for ours, theirs in (fields or {}).items()}
    rows: list[Any] = []
    faults: list[str] = []
    form: str | None = None
    for place, value in _values(Path(path)):
        try:
            found, row = _row(value, renamed, (group_by,) if group_by else GROUP_FIELDS)
            form = form or found
            if found != form:
                raise ValueError(f"a row of the form {found} in a file of the form {form}")
        except (ValueError, msgspec.ValidationError) as error:
            faults.append(f"{place}: {error}")
            continue
        rows.append(row)
    if faults:
        more = len(faults) - MAX_FAULTS
        raise ConfigError("\n".join(faults[:MAX_FAULTS] + ([f"{path}: and {more} more bad rows"] if more > 0 else [])))
    if form is None:
        raise ConfigError(f"{path}: there are no rows in it")
    if form == "passage":
        rows = _rankings(rows, seed)
    elif form == "candidates":
        rows = [row.ranking() for row in rows]
    total = len(rows)
    if limit is not None and limit < total:
        chosen = random.Random(seed).sample(range(total), limit)  # noqa: S311 - a sample, no secret
        rows = [rows[number] for number in sorted(chosen)]
    return LabelledFile(str(path), "ranking" if form in ("passage", "candidates") else form, tuple(rows), total)


def _row(value: Any, renamed: Mapping[str, str], group_fields: Sequence[str]) -> tuple[str, msgspec.Struct]:
    if not isinstance(value, dict):
        raise ValueError("expected an object")
    value = {renamed.get(key, key): item for key, item in value.items()}
    if value.get("role") not in (None, *get_args(Role)):  # msgspec would tell the value
        raise ValueError(f"role: expected {', '.join(get_args(Role))}")
    for form, (needed, kind) in _FORMS.items():
        if needed <= value.keys():
            # `group` is our own name; a file's field of that name is a group only if it was asked for.
            value["group"] = next((str(value[name]) for name in group_fields if name in value), "")
            return form, msgspec.convert(value, kind)
    raise ValueError(
        "expected the fields text and label, text and spans, response and label, or question and candidates"
    )


def _values(path: Path) -> Iterator[tuple[str, Any]]:
    """(place for messages, decoded value or the fault that `_row` will tell) of every row."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if data.lstrip()[:1] == b"[":
        for number, value in enumerate(_decode(data, f"{path}"), start=1):
            yield f"{path}: row {number}", value
        return
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", _decode(line, f"{path}:{number}")


def _decode(data: bytes, place: str) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{place}: not JSON: {error}") from error
