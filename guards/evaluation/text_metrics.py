"""How like a reference an answer is (BLEU, chrF, ROUGE, embeddings), and how sure the model was of it (perplexity).

All but perplexity are 0..1, higher is more alike. `bleu` and `chrf` are sacrebleu's, `rouge` is rouge-score's; both
come with ``pip install 'tidegate[evaluation]'`` and are imported when a function first needs them; nothing is
downloaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from guards.errors import ModelMissingError

if TYPE_CHECKING:
    from guards.artifacts import Artifacts

__all__ = [
    "RougeScore",
    "bleu",
    "chrf",
    "corpus_bleu",
    "corpus_chrf",
    "perplexity",
    "require_sacrebleu",
    "rouge",
    "rouge_l",
    "similarity",
]

RougeType = Literal["rouge1", "rouge2", "rougeL", "rougeLsum"]
ROUGE_TYPES: Final[tuple[RougeType, ...]] = ("rouge1", "rouge2", "rougeL", "rougeLsum")

# A word of any script; of those that write without spaces, a character.
_WORD: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|(?:(?![\u3040-\u30ff\u3400-\u9fff])[^\W_])+")


class RougeScore(msgspec.Struct, frozen=True):
    precision: float
    recall: float
    f1: float


# ---------------------------------------------------------------- against a reference


def bleu(reference: str, answer: str) -> float:
    """Sentence BLEU: n-grams up to the answer's own length, at most 4; tokenizer 13a, exponential smoothing."""
    return float(_bleu(True).sentence_score(answer, [reference]).score) / 100


def chrf(reference: str, answer: str) -> float:
    """chrF2: character n-grams up to 6, recall counts twice. The one to read for scripts without spaces."""
    return float(_chrf().sentence_score(answer, [reference]).score) / 100


def corpus_bleu(references: Sequence[str], answers: Sequence[str]) -> float:
    """BLEU of a whole set, one reference each: counts are pooled, it is no mean of `bleu`."""
    return float(_bleu(False).corpus_score(_paired(references, answers), [list(references)]).score) / 100


def corpus_chrf(references: Sequence[str], answers: Sequence[str]) -> float:
    """chrF2 of a whole set, one reference each."""
    return float(_chrf().corpus_score(_paired(references, answers), [list(references)]).score) / 100


def _paired(references: Sequence[str], answers: Sequence[str]) -> list[str]:
    if not answers or len(references) != len(answers):
        raise ValueError(f"expected one reference for each answer, got {len(references)} for {len(answers)}")
    return list(answers)


def rouge(
    reference: str, answer: str, kinds: Sequence[RougeType] = ROUGE_TYPES, *, stem: bool = False
) -> Mapping[str, RougeScore]:
    """ROUGE as ROUGE-1.5.5 counts it: words of a-z and 0-9 only, so for English; ``stem``: Porter's stems.

    ``rougeLsum`` takes each line for a sentence. Quadratic: 1,000 words against 1,000 take half a second.
    """
    found = _rouge(tuple(kinds), stem).score(reference, answer)
    return {
        kind: RougeScore(float(score.precision), float(score.recall), float(score.fmeasure))
        for kind, score in found.items()
    }


def rouge_l(reference: str, answer: str) -> float:
    """ROUGE-L's F1 over words of any script, in milliseconds for long texts too; `rouge` gives the same for ASCII.

    A bit per word of the reference holds a whole row of the table of the longest common subsequence.
    """
    wanted, given = _words(reference), _words(answer)
    if not wanted or not given:
        return 0.0
    places: dict[str, int] = {}
    for number, word in enumerate(wanted):
        places[word] = places.get(word, 0) | 1 << number
    full = (1 << len(wanted)) - 1
    row = full
    for word in given:
        at = row & places.get(word, 0)
        row = ((row + at) | (row - at)) & full
    return 2 * (len(wanted) - row.bit_count()) / (len(wanted) + len(given))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def similarity(reference: str, answer: str, artifacts: Artifacts) -> float:
    """The cosine of the two in the shared encoder, 0 where it is negative."""
    return min(max(float(artifacts.embedding(reference) @ artifacts.embedding(answer)), 0.0), 1.0)


# ---------------------------------------------------------------- perplexity


def perplexity(logprobs: Any) -> float:
    """Perplexity of an answer, 1 (sure of every token) and up, from the log probabilities of its tokens.

    ``logprobs`` as OpenAI's API writes it: ``{"content": [{"logprob": …}, …]}`` of a chat, ``{"token_logprobs": […]}``
    of a completion, a list of either (choices) or of tokens, or plain numbers; refused answers count as well. Raises
    `ValueError` where there are none, or one is not a number up to 0.
    """
    found = list(_logprobs(logprobs))
    if not found:
        raise ValueError("there are no log probabilities of tokens")
    if any(not isinstance(value, int | float) or isinstance(value, bool) or not value <= 1e-6 for value in found):
        raise ValueError("a log probability is not a number up to 0")
    mean = -math.fsum(found) / len(found)
    return math.exp(mean) if mean < 700 else math.inf  # e^709 is the largest float


def _logprobs(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _logprobs(item)
    elif not isinstance(value, Mapping):
        if value is not None:
            yield value
    elif "logprob" in value:
        yield value["logprob"]
    elif "token_logprobs" in value:  # the first token of an echoed prompt has none
        yield from _logprobs(value["token_logprobs"])
    else:
        yield from _logprobs(value.get("content"))
        yield from _logprobs(value.get("refusal"))


# ---------------------------------------------------------------- the libraries


def require_sacrebleu() -> None:
    """Raises `ModelMissingError`, which names the extra, where sacrebleu is not installed. Loads it (half a second)."""
    _chrf()
    _bleu(True)


def _missing(error: ImportError) -> ModelMissingError:
    return ModelMissingError(f"{error.name} is not installed: pip install 'tidegate[evaluation]'")


@cache
def _bleu(effective_order: bool) -> Any:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise _missing(error) from error
    return BLEU(effective_order=effective_order)


@cache
def _chrf() -> Any:
    try:
        from sacrebleu.metrics import CHRF
    except ImportError as error:
        raise _missing(error) from error
    return CHRF()


@cache
def _rouge(kinds: tuple[RougeType, ...], stem: bool) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise _missing(error) from error
    return RougeScorer(list(kinds), use_stemmer=stem)
