"""Test cases of policies: the format is strict, comparison tells what differs, and the stock policies hold theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from guards.cases import Case, cases_path, load_cases, run_cases
from guards.engine import Engine
from guards.errors import PolicyError
from guards.guard import build
from guards.models import ModelStore
from guards.policy import Policy, configs_folder
from streams.settings import load_settings

POLICIES = sorted(path for path in (configs_folder() / "policies").glob("*.yaml") if ".cases." not in path.name)


def write(folder: Path, text: str) -> Path:
    path = folder / "p.cases.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- {name: a, txt: x, expect: {decision: allow}}", "0.txt: unknown key; did you mean 'text'?"),
        ("- {name: a, text: x, expect: {decison: allow}}", "0.expect.decison: unknown key; did you mean 'decision'?"),
        ("- {name: a, text: x, expect: {decision: alow}}", "0.expect.decision: "),
        ("- {name: a, expect: {decision: allow}}", "give either text or messages"),
        ("- {name: a, text: x, question: y, expect: {decision: allow}}", "question belongs to stage: response"),
        ("- {name: a, text: x, documents: [{idd: 1}], expect: {decision: allow}}", "0.documents.0.idd: unknown key"),
        ("- 3", "0: expected a mapping"),
        ("name: a", "expected a list of cases"),
        ("[]", "expected a list of cases"),
    ],
)
def test_faulty_cases_are_refused(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(PolicyError) as caught:
        load_cases(write(tmp_path, text))
    assert any(problem in line for line in caught.value.problems), caught.value.problems


def test_two_cases_of_one_name_are_refused(tmp_path: Path) -> None:
    case = "- {name: a, text: x, expect: {decision: allow}}\n"
    with pytest.raises(PolicyError, match="two cases are named 'a'"):
        load_cases(write(tmp_path, case * 2))


def test_a_case_may_say_a_good_answer(tmp_path: Path) -> None:
    (case,) = load_cases(
        write(tmp_path, "- {name: a, text: x, stage: response, reference: At nine., expect: {decision: allow}}\n")
    )
    assert case.exchange().reference == "At nine."


def test_cases_lie_beside_their_policy() -> None:
    assert cases_path(Path("x/strict.yaml")) == Path("x/strict.cases.yaml")


def test_every_stock_policy_has_cases() -> None:
    assert {path.stem for path in POLICIES} >= {"default", "strict", "monitor-only"}
    for path in POLICIES:
        assert load_cases(cases_path(path))
    assert len(load_cases(cases_path(configs_folder() / "policies" / "default.yaml"))) >= 25


@pytest.fixture(scope="module")
def engine(model_store: ModelStore) -> Engine:
    policy = Policy.default()
    return Engine(
        policy, guards=build(policy.guards, load_settings("embedded").guards, model_store), models=model_store
    )


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.stem)
def test_the_stock_policies_hold_their_cases(engine: Engine, path: Path) -> None:
    results = run_cases(engine, Policy.load(path), load_cases(cases_path(path)))
    assert [(result.name, result.problems) for result in results if not result.ok] == []


def test_the_cases_of_the_stock_policy_reach_every_guard_and_rule() -> None:
    cases = load_cases(cases_path(configs_folder() / "policies" / "default.yaml"))
    reached = {rule for case in cases for rule in case.expect.rules}
    rules = Policy.default().document.rules
    assert {rule.guard for rule in rules if rule.name in reached} == set(Policy.default().guards)


@pytest.mark.parametrize(
    ("expect", "problem"),
    [
        ({"decision": "allow"}, "the decision is redact, expected allow: redact-pii (EMAIL_ADDRESS "),
        ({"decision": "redact", "rules": ["block-injection"]}, "the rule block-injection did not match; scores: "),
        ({"decision": "redact", "not_rules": ["redact-pii"]}, "the rule redact-pii matched"),
        ({"decision": "redact", "shadow": ["redact-pii"]}, "the shadow rule redact-pii did not match"),
        ({"decision": "redact", "failed": ["pii"]}, "pii could look, expected a failure"),
        ({"decision": "redact", "redacted": "Write to me."}, "the redacted text differs; replaced by: <EMAIL_ADDRESS>"),
    ],
)
def test_what_differs_is_told_without_the_text(engine: Engine, expect: dict[str, object], problem: str) -> None:
    case = Case.model_validate({"name": "a", "text": "Write to jane.doe@example.com.", "expect": expect})
    (result,) = run_cases(engine, Policy.default(), [case])
    assert not result.ok
    assert len(result.problems) == 1
    assert problem in result.problems[0]
    assert "jane.doe" not in result.problems[0]


def test_a_guard_that_could_not_look_fails_the_case(engine: Engine) -> None:
    case = Case.model_validate({"name": "a", "stage": "response", "text": "Yes.", "expect": {"decision": "allow"}})
    (result,) = run_cases(engine, Policy.default(), [case])
    assert "relevance could not look: request_missing" in result.problems
