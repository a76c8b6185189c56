"""Support by entailment: which passages are asked about, and what happens where nothing can be asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from guards.errors import ConfigError
from guards.grounding_nli import MAX_JUDGED, PASSAGES_EACH, Entailment

RIVER = "The river rises in the hills. "
FACTS = RIVER + "The bridge has fourteen arches of red sandstone. " * 20 + "The mill burned. " * 50


class Scored:
    def __init__(self, risks: Any) -> None:
        self.risks = np.array(risks)


class Classifier:
    """Entails what stands word for word in the passage; a sentence is read in parts, cut at its commas."""

    labels = ("contradiction", "Entailment", "neutral")
    version = "test"

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Scored]:
        self.asked.extend(pairs)
        return [
            Scored([(0, 0.9 if part.strip() in passage else 0.1, 0) for part in claim.split(",")])
            for passage, claim in pairs
        ]


@pytest.fixture
def classifier() -> Classifier:
    return Classifier()


@pytest.fixture
def entailment(classifier: Classifier) -> Entailment:
    return Entailment(classifier, {})  # type: ignore[arg-type]


def test_the_passage_that_entails_most_counts_and_the_worst_part_of_a_sentence(entailment: Entailment) -> None:
    claims = ["The river rises in the hills", "The river rises in the hills, the mill burned down"]
    assert entailment.risks(claims, [FACTS]) == pytest.approx([0.1, 0.9])


def test_few_passages_are_asked_about_those_closest_in_words(entailment: Entailment, classifier: Classifier) -> None:
    entailment.risks(["The river rises in the hills"], [FACTS])
    assert len(classifier.asked) == PASSAGES_EACH
    assert RIVER.strip() in classifier.asked[0][0]


def test_a_long_answer_is_judged_up_to_its_bound_and_nothing_without_documents(entailment: Entailment) -> None:
    claims = ["The river rises in the hills"] * (MAX_JUDGED + 5)
    assert len(entailment.risks(claims, [RIVER])) == MAX_JUDGED
    assert entailment.risks(claims, []) == []
    assert entailment.risks([], [RIVER]) == []


def test_a_model_without_entailment_must_be_told_which_label_it_is(classifier: Classifier) -> None:
    classifier.labels = ("LABEL_0", "LABEL_1", "LABEL_2")
    with pytest.raises(ConfigError, match="which of the model's labels is entailment"):
        Entailment(classifier, {})  # type: ignore[arg-type]
    told = Entailment(classifier, {"LABEL_1": "entailment"})  # type: ignore[arg-type]
    assert told.risks(["The river rises in the hills"], [RIVER]) == pytest.approx([0.1])
