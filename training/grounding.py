"""Measure the hallucination guard: `python -m training.grounding DATA`. It has nothing to train but eight constants."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guards.artifacts import Artifacts
from guards.grounding import GroundingGuard
from guards.guard import NoOptions
from guards.text import texts_of
from guards.types import Document, Exchange, Failure, Message, Unit
from training.data import rows

BINS = 24  # of answers' lengths: within each, both classes weigh the same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    print("set | AUC | AUC of counting new words | found / false alarms at 0.6")
    for name in ("begin_wow_dev", "halueval_qa"):
        found = rows(data / "groundedness" / f"{name}.jsonl")
        labels = np.array([row["label"] for row in found])
        risks = np.array([_risk(row["response"], [row["context"]], row["question"]) for row in found])
        counts = np.array([_new_words(row["response"], [row["context"]]) for row in found])
        _line(name, risks, counts, labels, np.ones(len(labels)))
        if name == "halueval_qa":
            lengths = np.array([len(row["response"]) for row in found])
            weights = _balanced(lengths, labels)
            print(f"  length alone, balanced: {_weighted_auc(lengths, labels, weights):.4f}")
            _line(f"{name}, balanced by length", risks, counts, labels, weights)
    _traffic(data / "traffic")


def _traffic(folder: Path) -> None:
    judged = {row["exchange_id"]: row for row in rows(folder / "rag_labels.jsonl") if row["supported"] is not None}
    events = rows(folder / "rag_exchanges.jsonl.gz")
    asked = {event["exchange_id"]: event for event in events if event["schema"] == "tidegate.request.v1"}
    found: list[tuple[dict[str, Any], float, int]] = []
    for event in events:
        label = judged.get(event["exchange_id"])
        if event["schema"] != "tidegate.response.v1" or label is None or not event["messages"]:
            continue
        answer, request = event["messages"][0].get("content"), asked[event["exchange_id"]]
        documents = [document["text"] for document in request.get("documents") or ()]
        if answer and documents:
            question = request["messages"][-1]["content"] or ""
            found.append((label, _risk(answer, documents, question), _new_words(answer, documents)))
    risks, counts = np.array([risk for _, risk, _ in found]), np.array([count for *_, count in found])
    labels = np.array([1 - label["supported"] for label, *_ in found])
    kinds = np.array([label["kind"] for label, *_ in found])
    _line("rag traffic", risks, counts, labels, np.ones(len(labels)))
    for bad, good in (("other_fact", "grounded"), ("off_topic", "grounded"), ("hallucinated", "right")):
        chosen = (kinds == bad) | (kinds == good)
        _line(f"  {bad} against {good}", risks[chosen], counts[chosen], labels[chosen], np.ones(chosen.sum()))


def _risk(answer: str, documents: Sequence[str], question: str) -> float:
    exchange = Exchange(
        messages=[Message("user", question)],
        response=[Message("assistant", answer)],
        documents=[Document(text) for text in documents],
    )
    unit = Unit(texts_of(exchange, "response"), exchange, "response")
    (result,) = GroundingGuard().check([unit], NoOptions(), Artifacts(None, None))
    assert not isinstance(result, Failure)
    return next(hit.score for hit in result if hit.kind == "unsupported")


def _new_words(answer: str, documents: Sequence[str]) -> int:
    known = set(re.findall(r"\w+", " ".join(documents).lower()))
    return sum(word not in known for word in re.findall(r"\w+", answer.lower()))


def _balanced(lengths: Any, labels: Any) -> Any:
    """Weights by which, among answers of about one length, both classes count the same."""
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, BINS + 1)))
    bins = np.digitize(lengths, edges)
    weights = np.zeros(len(labels))
    for number in np.unique(bins):
        bad, good = (bins == number) & (labels == 1), (bins == number) & (labels == 0)
        fewer = min(bad.sum(), good.sum())
        weights[bad], weights[good] = fewer / max(bad.sum(), 1), fewer / max(good.sum(), 1)
    return weights


def _weighted_auc(scores: Any, labels: Any, weights: Any) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores, sample_weight=weights))


def _line(title: str, risks: Any, counts: Any, labels: Any, weights: Any) -> None:
    both = [_weighted_auc(scores, labels, weights) for scores in (risks, counts)]
    rates = [np.average(risks[labels == label] >= 0.6, weights=weights[labels == label]) for label in (1, 0)]
    print(f"{title} ({len(labels)}) | {both[0]:.4f} | {both[1]:.4f} | {rates[0]:.3f} / {rates[1]:.3f}", flush=True)


if __name__ == "__main__":
    main()
