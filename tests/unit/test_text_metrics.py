"""Comparing an answer with a reference: against published values, and offline."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guards.artifacts import Artifacts
from guards.evaluation.text_metrics import (
    RougeScore,
    bleu,
    chrf,
    corpus_bleu,
    corpus_chrf,
    perplexity,
    rouge,
    rouge_l,
    similarity,
)

METRICS = Path(__file__).resolve().parents[3] / "shared" / "data" / "metrics"
needs_data = pytest.mark.skipif(not METRICS.exists(), reason="the development data is not beside this checkout")

unhurried = settings(deadline=None)  # the first example loads the libraries
TEXTS = st.lists(st.sampled_from(["red", "green", "blue", "a", "1.5", "Red"]), max_size=12).map(" ".join)


# ---------------------------------------------------------------- against a reference


def cases() -> list[Any]:
    path = METRICS / "expected_rouge155.json"
    if not path.exists():
        return []
    expected = json.loads(path.read_text("utf-8"))
    targets, predictions = (
        (METRICS / name).read_text("utf-8").splitlines() for name in ("target.txt", "prediction.txt")
    )
    single = [(targets[case["line"]], predictions[case["line"]], case) for case in expected["single"]]
    multi = [(*((METRICS / name).read_text("utf-8") for name in case["files"]), case) for case in expected["multi"]]
    literal = [(case["target"], case["prediction"], case) for case in expected["literal"]]
    return [
        pytest.param(*case, id=f"{case[2]['type']}-stem-{case[2]['stem']}-{number}")
        for number, case in enumerate(single + multi + literal)
    ]


@needs_data
@pytest.mark.parametrize(("target", "prediction", "case"), cases())
def test_rouge_is_that_of_rouge_155(target: str, prediction: str, case: dict[str, Any]) -> None:
    score = rouge(target, prediction, [case["type"]], stem=case["stem"])[case["type"]]
    assert [score.recall, score.precision, score.f1] == pytest.approx(case["rpf"], abs=1e-4)


def test_rouge_counts_words_pairs_and_the_longest_common_subsequence() -> None:
    found = rouge("the cat sat on the mat", "the cat on the mat")
    assert found["rouge1"] == RougeScore(1.0, pytest.approx(5 / 6), pytest.approx(10 / 11))
    assert found["rouge2"].precision == pytest.approx(3 / 4)
    assert found["rougeL"].recall == pytest.approx(5 / 6)


@unhurried
@given(TEXTS, TEXTS)
def test_rouge_l_is_that_of_rouge_score_where_all_is_ascii(reference: str, answer: str) -> None:
    assert rouge_l(reference, answer) == pytest.approx(rouge(reference, answer, ["rougeL"])["rougeL"].f1)


def test_rouge_l_reads_other_scripts() -> None:
    assert rouge_l("Die Tür öffnet später", "die tür öffnet") == pytest.approx(6 / 7)
    assert rouge_l("Дверь открыта", "Дверь закрыта") == 0.5
    assert rouge_l("門は九時に開く", "門は十時に開く") == pytest.approx(6 / 7)
    assert rouge("Дверь открыта", "Дверь открыта", ["rougeL"])["rougeL"].f1 == 0.0, "ROUGE-1.5.5 sees no word in it"


@unhurried
@given(TEXTS)
def test_equal_texts_are_wholly_alike_and_empty_ones_not_at_all(text: str) -> None:
    for measure in (bleu, chrf, rouge_l):
        assert measure(text, text) == pytest.approx(1.0 if text else 0.0)
        assert measure(text, "") == 0.0


@unhurried
@given(TEXTS, TEXTS)
def test_likeness_lies_between_0_and_1(reference: str, answer: str) -> None:
    assert all(0 <= measure(reference, answer) <= 1 + 1e-9 for measure in (bleu, chrf, rouge_l))


def test_bleu_by_hand() -> None:
    # "the cat sat on mat": 5 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 quadruples; one word too short.
    expected = math.exp(1 - 6 / 5) * (1 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert bleu("the cat sat on the mat", "the cat sat on mat") == pytest.approx(expected)


def test_the_score_of_a_set_pools_its_counts() -> None:
    references, answers = ["a b c d e f", "g h i j"], ["a b c d e f", "x y"]
    assert corpus_bleu(references, references) == pytest.approx(1.0)
    assert corpus_chrf(references, references) == pytest.approx(1.0)
    assert corpus_bleu(references, answers) != pytest.approx(
        sum(bleu(r, a) for r, a in zip(references, answers, strict=True)) / 2
    )
    with pytest.raises(ValueError, match="one reference for each answer"):
        corpus_bleu(references, ["a"])
    with pytest.raises(ValueError, match="one reference for each answer"):
        corpus_chrf([], [])


def test_similarity_is_the_cosine_of_the_shared_encoder() -> None:
    class Encoder:
        def encode(self, texts: Any) -> Any:
            table = {"east": (1, 0), "north east": (0.6, 0.8), "west": (-1, 0)}
            return np.array([table[text] for text in texts], dtype=np.float32)

    artifacts = Artifacts(Encoder, None)
    assert similarity("east", "north east", artifacts) == pytest.approx(0.6)
    assert similarity("east", "west", artifacts) == 0.0


def test_nothing_is_downloaded() -> None:
    code = (
        "import socket\n"
        "def refuse(*args, **kwargs): raise AssertionError('it asks the network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from guards.evaluation.text_metrics import bleu, chrf, rouge\n"
        "assert bleu('a b', 'a b') and chrf('a b', 'a b')\n"
        "assert rouge('walking dogs.\\nIt is.', 'walked a dog.', stem=True)['rouge1'].f1 > 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env={"HOME": "/"})
    assert done.returncode == 0, done.stderr


def test_importing_it_loads_no_library() -> None:
    code = "import sys, guards.evaluation.text_metrics; print({'sacrebleu', 'rouge_score', 'nltk'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# ---------------------------------------------------------------- perplexity

CHAT = {
    "content": [
        {"token": "It", "logprob": math.log(0.5), "bytes": [73], "top_logprobs": [{"token": "I", "logprob": -3.0}]},
        {"token": " is", "logprob": math.log(0.125), "bytes": None, "top_logprobs": []},
    ],
    "refusal": None,
}


@pytest.mark.parametrize(
    "logprobs",
    [
        CHAT,
        [CHAT],
        CHAT["content"],
        [math.log(0.5), math.log(0.125)],
        {"tokens": ["It", " is"], "token_logprobs": [math.log(0.5), math.log(0.125)], "text_offset": [0, 2]},
        {"tokens": ["", "It", " is"], "token_logprobs": [None, math.log(0.5), math.log(0.125)]},
        {"content": None, "refusal": CHAT["content"]},
    ],
)
def test_perplexity_of_all_the_shapes_that_providers_send(logprobs: Any) -> None:
    assert perplexity(logprobs) == pytest.approx(4.0)  # one over the geometric mean of 1/2 and 1/8


def test_perplexity_at_the_ends() -> None:
    assert perplexity([0.0, 0.0]) == 1.0
    assert perplexity([-9999.0]) == math.inf


@pytest.mark.parametrize(
    "logprobs", [None, [], {}, {"content": []}, "text", [{"token": "a"}], ["x"], [0.5], [math.nan], [True], 7]
)
def test_what_has_no_perplexity(logprobs: Any) -> None:
    with pytest.raises(ValueError, match="log probabilit"):
        perplexity(logprobs)
