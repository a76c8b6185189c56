"""Train the toxicity head and print its figures: `python -m training.toxicity DATA --cache FOLDER [--write]`.

The head is a direction in the shared encoder's space and a mix of it with the words' log odds. The mix is learned on
scores that each text got from heads that had not seen it, most of them not even its data set: a head that knows a set
looks better on it than it is, and the mix would trust it too much.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import yaml

from guards.artifacts import Artifacts
from guards.heads import Head
from guards.toxicity import Lexical, LinearBackend
from guards.types import Text
from guards.words import english_share, words
from training.data import Embeddings, auc, average_precision, rows, save

Array = npt.NDArray[np.float64]

HATE: Final = ("mhc_dutch", "mhc_italian", "mhc_portuguese")
EVERY: Final = 4  # of the templates of HATE, which differ in one word only
# What a set's texts weigh together, per text. Wikipedia's are few in their toxic class and nearest to plain prose.
WEIGHTS: Final = {"jigsaw_wiki": 2.0, "surge": 1.0, "identity": 1.5, "ordinary": 0.5}
HATE_WEIGHT: Final = 0.3
OTHER_SET_SHARE: Final = 0.9  # of the mix's training: scores of heads that did not know the text's data set
DIRECTION_C: Final = 0.05
SCALE: Final = 3.0  # of the embedding, whose norm is 1, so that DIRECTION_C regularises
# Classes are balanced in training, toxic texts are rare in traffic: this moves the odds so that about 2 % of harmless
# Wikipedia comments lie at or above 0.7.
OFFSET: Final = -0.7


class Rows(NamedTuple):
    """A data set: texts, labels, embeddings of the texts' openings, the words' log odds, the share of English words."""

    texts: list[str]
    labels: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]
    lexical: Array
    english: Array

    def part(self, chosen: npt.NDArray[np.intp]) -> Rows:
        return Rows([self.texts[i] for i in chosen], *(column[chosen] for column in self[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--write", action="store_true", help="write guards/heads/toxicity.safetensors")
    arguments = parser.parse_args()
    read = Reader(arguments.data, Embeddings(arguments.cache))
    sets = read.training()
    figures(sets, read)
    if arguments.write:
        head = train(sets)
        save("toxicity", head.tensors)


class Reader:
    """The data sets with their features."""

    def __init__(self, data: Path, embeddings: Embeddings) -> None:
        self.data, self.embeddings, self.lexical = data, embeddings, Lexical()
        self.identity = yaml.safe_load(Path(__file__).with_name("identity_terms.yaml").read_text(encoding="utf-8"))

    def __call__(self, texts: Sequence[str], labels: Sequence[int]) -> Rows:
        english = [english_share(words(text)) for text in texts]
        odds = self.lexical.log_odds(texts)
        return Rows(list(texts), np.array(labels), self.embeddings([t[:4000] for t in texts]), odds, np.array(english))

    def file(self, name: str, every: int = 1) -> Rows:
        found = rows(self.data / "toxicity" / f"{name}.jsonl")[::every]
        return self([row["text"] for row in found], [row["label"] for row in found])

    def templates(self, half: str, kind: str, label: int) -> tuple[list[str], list[int]]:
        filled = [line.format(term) for line in self.identity[half][kind] for term in self.identity[half]["terms"]]
        return filled, [label] * len(filled)

    def training(self) -> dict[str, Rows]:
        harmless, zeros = self.templates("train", "sentences", 0)
        harmful, ones = self.templates("train", "harmful", 1)
        injection = self.data / "injection"
        ordinary = [row["text"] for row in rows(injection / "benign_coding.jsonl")[::2]]
        ordinary += [row["text"] for row in rows(injection / "benign_act_as.jsonl")]
        ordinary = [text for text in ordinary if len(text) <= 600] + self.questions()[::4]
        return {
            **{name: self.file(name) for name in ("jigsaw_wiki", "surge")},
            **{name: self.file(name, EVERY) for name in HATE},
            "identity": self(harmless + harmful[::2], zeros + ones[::2]),
            "ordinary": self(ordinary, [0] * len(ordinary)),
        }

    def questions(self) -> list[str]:
        events = rows(self.data / "traffic" / "rag_exchanges.jsonl.gz")
        asked = (e["messages"][-1]["content"] for e in events if e["schema"] == "tidegate.request.v1")
        return sorted({text for text in asked if text})

    def chat(self) -> list[str]:
        events = rows(self.data / "traffic" / "exchanges.jsonl.gz")
        asked = (e["messages"][-1]["content"] for e in events if e["schema"] == "tidegate.request.v1")
        return sorted({text for text in asked if text and len(text) <= 600})[::8]


def train(sets: Mapping[str, Rows]) -> Head:
    """Fit direction and mix on all of the sets."""
    labels = np.concatenate([rows.labels for rows in sets.values()])
    weights = np.concatenate([_weights(name, rows.labels) for name, rows in sets.items()])
    vectors = np.concatenate([rows.vectors for rows in sets.values()]) * SCALE
    owner = np.concatenate([np.full(len(rows.labels), number) for number, rows in enumerate(sets.values())])
    within = np.zeros(len(labels))
    across = np.zeros(len(labels))
    from sklearn.model_selection import StratifiedKFold

    for seen, unseen in StratifiedKFold(5, shuffle=True, random_state=0).split(vectors, labels + 2 * owner):
        within[unseen] = _direction(vectors[seen], labels[seen], weights[seen]).decision_function(vectors[unseen])
    for number in range(len(sets)):
        held = owner == number
        fitted = _direction(vectors[~held], labels[~held], weights[~held])
        across[held] = fitted.decision_function(vectors[held])
    final = _direction(vectors, labels, weights)
    lexical = np.concatenate([rows.lexical for rows in sets.values()])
    english = np.concatenate([rows.english for rows in sets.values()])
    columns = [np.stack([lexical * english, seen, seen * english], 1) for seen in (within, across)]
    mix = _logistic_regression(1.0).fit(
        np.concatenate(columns),
        np.concatenate([labels, labels]),
        np.concatenate([weights * (1 - OTHER_SET_SHARE), weights * OTHER_SET_SHARE]),
    )
    (a, b, c), constant = mix.coef_[0], float(mix.intercept_[0]) + OFFSET
    # The direction's own constant goes into the mix, in which it also counts once per English share.
    own = float(final.intercept_[0])
    tensors = {
        "direction": (final.coef_[0] * SCALE).astype(np.float32),
        "mix": np.array([a, b, c, own, constant], dtype=np.float32),
    }
    return Head(tensors, "")


def _direction(vectors: npt.NDArray[np.float32], labels: Array, weights: Array):  # type: ignore[no-untyped-def]
    return _logistic_regression(DIRECTION_C).fit(vectors, labels, weights)


def _logistic_regression(c: float):  # type: ignore[no-untyped-def]
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=c, max_iter=2000)


def _weights(name: str, labels: npt.NDArray[np.int64]) -> Array:
    """Both classes of a set weigh the same in sum."""
    share = float(labels.mean())
    balanced = np.where(labels == 1, 0.5 / share, 0.5 / (1 - share)) if 0 < share < 1 else np.ones(len(labels))
    return balanced * WEIGHTS.get(name, HATE_WEIGHT)


# ---------------------------------------------------------------- figures


def figures(sets: Mapping[str, Rows], read: Reader) -> None:
    print("set, trained on | AP (words alone) | AUC (words alone) | found and false alarms at 0.7 | at 0.95")
    for name in ("surge", "jigsaw_wiki", *HATE):
        others = {other: rows for other, rows in sets.items() if other != name}
        _line(f"{name}, all other sets", sets[name], scores(train(others), sets[name]))
    only = {name: sets[name] for name in ("jigsaw_wiki", "identity", "ordinary")}
    _line("surge, jigsaw_wiki", sets["surge"], scores(train(only), sets["surge"]))
    for name, given in _cross_validated(sets).items():
        _line(f"{name}, four fifths of it and the other sets", sets[name], given)
    head = train(sets)

    def by_head(texts: list[str]) -> Array:
        return scores(head, read(texts, [0] * len(texts)))

    def by_words(texts: list[str]) -> Array:
        return 1 / (1 + np.exp(-read.lexical.log_odds(texts)))

    named, plain = read.templates("test", "sentences", 0)[0], read.identity["test"]["plain"]
    for what, risk in (("head", by_head), ("words", by_words)):
        with_terms, without = risk(named), risk(plain)
        harmful = risk(read.templates("test", "harmful", 1)[0])
        print(
            f"identity ({what}): mean {with_terms.mean():.3f} with terms, {without.mean():.3f} without; "
            f"{(with_terms >= 0.7).mean():.3f} of {len(named)} at 0.7; harmful found {(harmful >= 0.7).mean():.3f}"
        )
    chat = read.chat()
    risks = scores(head, read(chat, [0] * len(chat)))
    print(f"chat (no labels, {len(chat)}): {(risks >= 0.7).mean():.3f} at 0.7, {(risks >= 0.95).mean():.3f} at 0.95")


def scores(head: Head, rows: Rows) -> Array:
    """What the guard's backend says with this head."""
    backend = LinearBackend(head, "training")
    artifacts = Artifacts(None, None, cache_size=100_000)
    for text, vector in zip(rows.texts, rows.vectors, strict=True):
        artifacts._embeddings.put(text[:4000], vector)
    return np.array([hits[0].score for hits in backend.score([Text(text, "user") for text in rows.texts], artifacts)])


def _cross_validated(sets: Mapping[str, Rows]) -> dict[str, Array]:
    from sklearn.model_selection import StratifiedKFold

    names = ("surge", "jigsaw_wiki")
    given = {name: np.zeros(len(sets[name].labels)) for name in names}
    folds = {
        name: list(StratifiedKFold(5, shuffle=True, random_state=1).split(sets[name].texts, sets[name].labels))
        for name in names
    }
    for number in range(5):
        head = train({**sets, **{name: sets[name].part(folds[name][number][0]) for name in names}})
        for name in names:
            unseen = folds[name][number][1]
            given[name][unseen] = scores(head, sets[name].part(unseen))
    return given


def _line(title: str, rows: Rows, risks: Array) -> None:
    toxic = rows.labels == 1
    rates = [f"{(risks[toxic] >= at).mean():.3f} / {(risks[~toxic] >= at).mean():.3f}" for at in (0.7, 0.95)]
    print(
        f"{title} | {average_precision(risks, rows.labels):.4f} ({average_precision(rows.lexical, rows.labels):.4f})"
        f" | {auc(risks, rows.labels):.4f} ({auc(rows.lexical, rows.labels):.4f}) | {' | '.join(rates)}",
        flush=True,
    )


if __name__ == "__main__":
    main()
