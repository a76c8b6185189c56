"""Measure how the relevance guard ranks: `python -m training.relevance DATA --cache FOLDER`. Nothing is trained.

A question is put to every sentence of its paragraph; the one that holds the answer should have the lowest risk.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from guards.artifacts import Artifacts
from guards.guard import NoOptions
from guards.relevance import Likeness, RelevanceGuard
from guards.sentences import sentences
from guards.text import texts_of
from guards.types import Exchange, Failure, Message, Unit
from guards.words import content_stems, words
from training.data import Embeddings, rows

Scorer = Callable[[str, str, Artifacts], float]
"""Question, sentence → the higher, the likelier an answer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1, help="take every n-th question")
    arguments = parser.parse_args()
    embeddings = Embeddings(arguments.cache)
    print("language | ranked by | recall at 1 | mean reciprocal rank")
    for language in ("en", "de", "es"):
        found = rows(arguments.data / "relevance" / f"xquad_{language}.jsonl")[:: arguments.every]
        ranks: dict[str, list[int]] = {"the guard": [], "cosine alone": [], "word overlap": []}
        texts = {row["question"] for row in found} | {s.text for row in found for s in sentences(row["context"])}
        artifacts = Artifacts(None, None, cache_size=len(texts))
        for text, vector in zip(texts, embeddings(list(texts)), strict=True):
            artifacts._embeddings.put(text, vector)
        scorers: dict[str, Scorer] = {"the guard": _safety, "cosine alone": _cosine, "word overlap": _overlap}
        for row in found:
            candidates = [sentence.text for sentence in sentences(row["context"])]
            holds = row["answer_sentence"]
            right = [row["answer"] in text and (text in holds or holds in text) for text in candidates]
            if not any(right) or len(candidates) < 2:
                continue
            for name, scorer in scorers.items():
                scores = [scorer(row["question"], text, artifacts) for text in candidates]
                ranks[name].append(_rank(scores, right))
        for name, places in ranks.items():
            ordered = np.array(places)
            print(f"{language} ({len(ordered)}) | {name} | {(ordered == 1).mean():.3f} | {(1 / ordered).mean():.3f}")


def _rank(scores: Sequence[float], right: Sequence[bool]) -> int:
    """Place of the right sentence, 1 for the first; of equal scores the wrong one comes first."""
    best = max(value for value, is_right in zip(scores, right, strict=True) if is_right)
    return 1 + sum(value >= best for value, is_right in zip(scores, right, strict=True) if not is_right)


def _safety(question: str, answer: str, artifacts: Artifacts) -> float:
    exchange = Exchange(messages=[Message("user", question)], response=[Message("assistant", answer)])
    unit = Unit(texts_of(exchange, "response"), exchange, "response")
    (result,) = RelevanceGuard(Likeness("training")).check([unit], NoOptions(), artifacts)
    assert not isinstance(result, Failure)
    return 1 - result[0].score


def _cosine(question: str, answer: str, artifacts: Artifacts) -> float:
    return float(artifacts.embedding(question) @ artifacts.embedding(answer))


def _overlap(question: str, answer: str, artifacts: Artifacts) -> float:
    asked, said = set(content_stems(words(question))), set(content_stems(words(answer)))
    return len(asked & said) / (len(asked) or 1)


if __name__ == "__main__":
    main()
