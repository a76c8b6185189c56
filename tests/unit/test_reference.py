"""The guard `reference`: how far an answer is from what the event says it should be."""

from __future__ import annotations

import builtins
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guards.artifacts import Artifacts
from guards.engine import Engine
from guards.errors import ModelMissingError, PolicyError
from guards.evaluation import text_metrics
from guards.guard import Needs
from guards.models import ModelStore
from guards.policy import Policy
from guards.reference import MAX_CHARS, Options, ReferenceGuard, build
from guards.text import texts_of
from guards.types import Action, Exchange, Failure, FailureCode, Function, Hit, Message, ToolCall, Unit

REFERENCE = "The museum opens at nine and closes at five."
LOGPROBS = {"content": [{"token": "a", "logprob": math.log(0.5)}, {"token": "b", "logprob": math.log(0.125)}]}


class Encoder:
    def encode(self, texts: Any) -> Any:
        return np.array([(1, 0) if text == REFERENCE else (0.6, 0.8) for text in texts], dtype=np.float32)


@pytest.fixture(scope="module")
def guard() -> ReferenceGuard:
    return ReferenceGuard("two-dimensions")


def unit(answer: str, reference: str = REFERENCE, *, logprobs: Any = None, asked: bool = True) -> Unit:
    exchange = Exchange(
        messages=[Message("user", "When is it open?")] if asked else None,
        response=[Message("assistant", answer)],
        reference=reference,
        logprobs=logprobs,
    )
    return Unit(texts_of(exchange, "response"), exchange, "response")


def risks(guard: ReferenceGuard, checked: Unit, options: Options = Options()) -> dict[str, float]:  # noqa: B008
    assert guard.applies(checked, options)
    (result,) = guard.check([checked], options, Artifacts(Encoder, None))
    assert not isinstance(result, Failure)
    return {hit.kind: hit.score for hit in result}


def test_the_reference_itself_has_no_risk_and_another_text_has(guard: ReferenceGuard) -> None:
    assert risks(guard, unit(REFERENCE)) == {"bleu": 0, "chrf": 0, "rouge_l": 0, "similarity": 0}
    close = risks(guard, unit("The museum opens at nine."))
    far = risks(guard, unit("Bananas grow in warm countries."))
    assert far["similarity"] == close["similarity"] == 0.4
    assert all(far[kind] > 0.8 > close[kind] > 0.1 for kind in ("bleu", "chrf", "rouge_l"))


def test_perplexity_needs_no_reference(guard: ReferenceGuard) -> None:
    assert risks(guard, unit("At nine.", "", logprobs=LOGPROBS)) == {"perplexity": 0.75}
    assert risks(guard, unit("At nine.", "", logprobs=[0.0])) == {"perplexity": 0.0}
    assert risks(guard, unit("At nine.", "", logprobs=[-9999.0])) == {"perplexity": 1.0}
    assert "perplexity" in risks(guard, unit("At nine.", logprobs=LOGPROBS))


def test_a_policy_may_ask_for_less(guard: ReferenceGuard) -> None:
    options = Options(kinds=("chrf", "perplexity"))
    assert set(risks(guard, unit("At nine.", logprobs=LOGPROBS), options)) == {"chrf", "perplexity"}
    assert guard.needs(unit("At nine."), options) == Needs()


def test_where_there_is_nothing_to_compare_with(guard: ReferenceGuard) -> None:
    options = Options()
    assert not guard.applies(unit("At nine.", ""), options)
    assert not guard.applies(unit("At nine.", " \n"), options)
    assert not guard.applies(unit("At nine.", "", logprobs={"content": "odd"}), options)
    call = Exchange(
        messages=[], response=[Message("assistant", None, [ToolCall(function=Function("f", "{}"))])], reference="x"
    )
    assert not guard.applies(Unit(texts_of(call, "response"), call, "response"), options)


def test_without_the_request_a_reference_of_the_response_is_enough(guard: ReferenceGuard) -> None:
    assert risks(guard, unit(REFERENCE, asked=False))["bleu"] == 0
    lost = unit("At nine.", "", asked=False, logprobs=LOGPROBS)
    assert guard.applies(lost, Options())
    assert guard.check([lost], Options(), Artifacts(None, None)) == [Failure(FailureCode.REQUEST_MISSING)]


def test_too_large_is_a_failure(guard: ReferenceGuard) -> None:
    large = "a" * (MAX_CHARS + 1)
    for checked in (unit(large), unit("a", large)):
        assert guard.needs(checked, Options()) == Needs()
        assert guard.check([checked], Options(), Artifacts(None, None)) == [Failure(FailureCode.INPUT_TOO_LARGE)]


def test_what_is_needed_is_all_that_is_read(guard: ReferenceGuard) -> None:
    checked = unit("At nine.")
    artifacts = Artifacts(Encoder, None)
    artifacts.prepare(guard.needs(checked, Options()).embed, [])
    sealed = Artifacts(None, None)
    sealed._embeddings = artifacts._embeddings
    (result,) = guard.check([checked], Options(), sealed)
    assert all(isinstance(hit, Hit) for hit in result)


def test_the_policy_in_the_documentation_decides_by_it(guard: ReferenceGuard) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text("utf-8")
    (example,) = re.findall(r"```yaml\n(.+?)```", page, flags=re.DOTALL)
    engine = Engine(Policy.parse(f"name: docs\n{example}"), guards={"reference": guard})
    engine.artifacts = Artifacts(Encoder, None)
    near, far, nothing = (
        engine.check(checked.exchange, "response")
        for checked in (unit(REFERENCE), unit("Bananas.", logprobs=LOGPROBS), unit("Bananas.", ""))
    )
    assert (near.decision, near.coverage.scanned) == (Action.ALLOW, ("reference",))
    assert {reason.rule for reason in far.reasons} == {"far-from-the-reference", "unsure"}
    assert nothing.coverage.skipped == ("reference",)


def test_options(tmp_path: Any) -> None:
    with pytest.raises(PolicyError, match=r"guards\.reference\.kindz: unknown key"):
        build({"kindz": []}, ModelStore(tmp_path))
    with pytest.raises(ModelMissingError):
        build({}, ModelStore(tmp_path))


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] in ("sacrebleu", "rouge_score"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    for made in (text_metrics._bleu, text_metrics._chrf, text_metrics._rouge):
        made.cache_clear()
    with pytest.raises(ModelMissingError, match=r"pip install 'tidegate\[evaluation\]'"):
        ReferenceGuard("two-dimensions")
    with pytest.raises(ModelMissingError, match=r"rouge_score.* is not installed: pip install"):
        text_metrics.rouge("a", "a")
