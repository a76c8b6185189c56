"""Golden tests of the policy: what follows from which findings, and what a faulty file is told."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.errors import PolicyError
from guards.policy import Policy, options_of
from guards.types import Action, Failed, FailureCode, Finding, Location, Redaction, Span, Stage, Verdict

KINDS = ("PERSON", "EMAIL_ADDRESS", "CREDIT_CARD")


def parse(text: str) -> Policy:
    return Policy.parse(dedent(text))


def problems(text: str) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        parse(text)
    return caught.value.problems


def finding(guard: str, score: float, kind: str = "toxicity", *spans: Span) -> Finding:
    return Finding(guard, kind, score, spans)


RULES = parse(
    """
    name: rules
    guards:
      toxicity: {threshold: 0.6}
      pii: {on_failure: {request: block, response: allow}}
      injection: {on_failure: block}
    rules:
      - {name: flag, guard: toxicity, action: flag}
      - {name: block, guard: toxicity, threshold: 0.9, action: block}
      - {name: cards, guard: pii, kinds: [CREDIT_CARD], action: block}
      - {name: names, guard: pii, kinds: [PERSON, EMAIL_ADDRESS], action: redact}
      - {name: injection, guard: injection, stages: [request], action: block}
      - {name: trial, guard: toxicity, threshold: 0.3, action: block, shadow: true}
    """
)


# ---------------------------------------------------------------- decide


@pytest.mark.parametrize(
    ("findings", "stage", "decision", "rules", "shadow"),
    [
        ([], "request", "allow", [], []),
        ([finding("toxicity", 0.29)], "request", "allow", [], []),
        ([finding("toxicity", 0.3)], "request", "allow", [], ["trial"]),
        ([finding("toxicity", 0.59)], "request", "allow", [], ["trial"]),
        ([finding("toxicity", 0.6)], "request", "flag", ["flag"], ["trial"]),
        ([finding("toxicity", 0.9)], "request", "block", ["flag", "block"], ["trial"]),
        ([finding("toxicity", 0.9)], "response", "block", ["flag", "block"], ["trial"]),
        ([finding("pii", 0.9, "PERSON")], "request", "redact", ["names"], []),
        ([finding("pii", 0.49, "PERSON")], "request", "allow", [], []),
        ([finding("pii", 0.9, "US_SSN")], "request", "allow", [], []),
        ([finding("pii", 0.9, "CREDIT_CARD")], "response", "block", ["cards"], []),
        ([finding("injection", 1.0, "jailbreak")], "request", "block", ["injection"], []),
        ([finding("injection", 1.0, "jailbreak")], "response", "allow", [], []),
        ([finding("pii", 0.9, "PERSON"), finding("toxicity", 0.7)], "request", "redact", ["flag", "names"], ["trial"]),
        (
            [finding("pii", 0.9, "PERSON"), finding("pii", 0.6, "CREDIT_CARD")],
            "response",
            "block",
            ["cards", "names"],
            [],
        ),
    ],
)
def test_the_strictest_enforced_rule_decides(
    findings: list[Finding], stage: Stage, decision: str, rules: list[str], shadow: list[str]
) -> None:
    verdict = RULES.decide(findings, [], stage)
    assert verdict.decision == decision
    assert [reason.rule for reason in verdict.reasons] == rules
    assert [reason.rule for reason in verdict.shadow] == shadow


def test_a_reason_has_the_highest_score_and_all_places_of_its_kind() -> None:
    first, second = Span(0, 4, "PERSON", message=0), Span(10, 14, "PERSON", message=1)
    (reason,) = RULES.decide(
        [finding("pii", 0.6, "PERSON", first), finding("pii", 0.8, "PERSON", second, first)], [], "request"
    ).reasons
    assert (reason.score, reason.threshold, reason.action) == (0.8, 0.5, Action.REDACT)
    assert reason.spans == (first, second)


@pytest.mark.parametrize(
    ("guard", "stage", "decision"),
    [
        ("pii", "request", "block"),
        ("pii", "response", "allow"),
        ("injection", "request", "block"),
        ("injection", "response", "block"),
        ("toxicity", "request", "allow"),
    ],
)
def test_what_a_failure_means_is_the_policys_word(guard: str, stage: Stage, decision: str) -> None:
    verdict = RULES.decide([], [Failed(guard, FailureCode.TIMEOUT)], stage)
    assert verdict.decision == decision
    if decision == "block":
        (reason,) = verdict.reasons
        assert (reason.guard, reason.kind, reason.rule) == (guard, "failure:timeout", "on_failure")


def test_a_shadow_policy_enforces_nothing_and_says_what_it_would_have_done() -> None:
    policy = Policy(RULES.document.model_copy(update={"shadow": True}))
    span = Span(0, 4, "PERSON", message=0)
    verdict = policy.decide(
        [finding("pii", 1.0, "PERSON", span), finding("toxicity", 1.0)],
        [Failed("injection", FailureCode.ERROR)],
        "request",
    )
    assert (verdict.decision, verdict.reasons, verdict.redactions) == (Action.ALLOW, (), ())
    assert {reason.rule for reason in verdict.shadow} == {"flag", "block", "names", "trial", "on_failure"}


# ---------------------------------------------------------------- redactions


def redactions(*spans: Span) -> tuple[Redaction, ...]:
    found = [finding("pii", 1.0, span.kind, span) for span in spans]
    return RULES.decide(found, [], "request").redactions


def test_redactions_that_overlap_become_one_under_the_longers_name() -> None:
    merged = redactions(
        Span(5, 9, "PERSON", message=0), Span(0, 7, "EMAIL_ADDRESS", message=0), Span(20, 25, "PERSON", message=0)
    )
    place = Location(message=0)
    assert merged == (Redaction(place, 0, 9, "<EMAIL_ADDRESS>"), Redaction(place, 20, 25, "<PERSON>"))


def test_redactions_of_other_places_are_kept_apart() -> None:
    merged = redactions(
        Span(0, 4, "PERSON", message=0),
        Span(0, 4, "PERSON", message=1),
        Span(0, 4, "PERSON", message=1, part=2),
        Span(0, 4, "PERSON", document=0),
    )
    assert len(merged) == 4
    assert len({item.location for item in merged}) == 4


def test_only_a_redact_decision_redacts() -> None:
    span = Span(0, 4, "PERSON", message=0)
    verdict = RULES.decide([finding("pii", 1.0, "PERSON", span), finding("toxicity", 0.95)], [], "request")
    assert (verdict.decision, verdict.redactions) == (Action.BLOCK, ())


# ---------------------------------------------------------------- determinism

spans = st.builds(
    lambda start, length, kind, message: Span(start, start + length, kind, message=message),
    st.integers(0, 50),
    st.integers(1, 20),
    st.sampled_from(KINDS),
    st.integers(0, 2),
)
findings_of_pii = st.builds(
    lambda score, span: Finding("pii", span.kind, score, (span,)), st.floats(0, 1, allow_nan=False), spans
)
findings_of_toxicity = st.builds(lambda score: finding("toxicity", score), st.floats(0, 1, allow_nan=False))
some_findings = st.lists(st.one_of(findings_of_pii, findings_of_toxicity), max_size=12)
some_failures = st.lists(
    st.builds(Failed, st.sampled_from(("pii", "injection", "toxicity")), st.sampled_from(list(FailureCode))), max_size=3
)
stages = st.sampled_from(("request", "response"))


def summary(verdict: Verdict) -> tuple[object, ...]:
    places = frozenset((item.location, offset) for item in verdict.redactions for offset in range(item.start, item.end))
    return (verdict.decision, frozenset((r.rule, r.kind, r.score) for r in verdict.reasons), places)


@given(some_findings, some_failures, stages)
def test_same_input_same_output(findings: list[Finding], failures: list[Failed], stage: Stage) -> None:
    again = Policy(RULES.document)
    assert RULES.decide(findings, failures, stage) == again.decide(iter(findings), iter(failures), stage)


@given(some_findings, some_failures, stages, st.randoms())
def test_the_order_of_findings_changes_nothing_that_matters(
    findings: list[Finding], failures: list[Failed], stage: Stage, rng: object
) -> None:
    shuffled = list(findings)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert summary(RULES.decide(findings, failures, stage)) == summary(RULES.decide(shuffled, failures, stage))


@given(some_findings, some_failures, stages, findings_of_pii)
def test_one_more_finding_never_makes_a_decision_milder(
    findings: list[Finding], failures: list[Failed], stage: Stage, more: Finding
) -> None:
    before = RULES.decide(findings, failures, stage)
    after = RULES.decide([*findings, more], failures, stage)
    assert after.decision.severity >= before.decision.severity


@given(some_findings)
def test_redactions_are_disjoint_ordered_and_cover_every_redacted_span(findings: list[Finding]) -> None:
    verdict = RULES.decide(findings, [], "request")
    if verdict.decision is not Action.REDACT:
        assert verdict.redactions == ()
        return
    for one, next_ in zip(verdict.redactions, verdict.redactions[1:], strict=False):
        assert one.location != next_.location or one.end <= next_.start
    covered = {(item.location, offset) for item in verdict.redactions for offset in range(item.start, item.end)}
    wanted = {
        (span.location, offset)
        for reason in verdict.reasons
        if reason.action is Action.REDACT
        for span in reason.spans
        for offset in range(span.start, span.end)
    }
    assert covered == wanted


# ---------------------------------------------------------------- overrides

OVERRIDES = parse(
    """
    name: overrides
    guards:
      toxicity: {threshold: 0.6}
      pii: {}
    rules:
      - {name: flag, guard: toxicity, action: flag}
      - {name: names, guard: pii, action: redact}
    overrides:
      - when: {tenant: acme}
        guards: {toxicity: {threshold: 0.3}}
      - when: {tenant: [acme, globex], route: support}
        rules:
          - {name: flag, guard: toxicity, action: block}
          - {name: cards, guard: pii, kinds: [CREDIT_CARD], action: block}
        without_rules: [names]
    """
)


@pytest.mark.parametrize(
    ("tenant", "route", "score", "decision"),
    [
        ("other", "support", 0.4, "allow"),
        ("other", "support", 0.7, "flag"),
        ("acme", "chat", 0.4, "flag"),
        ("acme", "support", 0.4, "block"),
        ("globex", "support", 0.4, "allow"),
        ("globex", "support", 0.7, "block"),
        ("globex", "chat", 0.7, "flag"),
    ],
)
def test_overrides_by_tenant_and_route(tenant: str, route: str, score: float, decision: str) -> None:
    resolved = OVERRIDES.resolve(tenant, route)
    assert resolved.decide([finding("toxicity", score)], [], "request").decision == decision
    assert resolved.ref == OVERRIDES.ref


def test_an_override_can_take_a_rule_away_and_add_one() -> None:
    name, card = finding("pii", 1.0, "PERSON"), finding("pii", 1.0, "CREDIT_CARD")
    resolved = OVERRIDES.resolve("acme", "support")
    assert resolved.decide([name], [], "request").decision is Action.ALLOW
    assert resolved.decide([card], [], "request").decision is Action.BLOCK
    assert OVERRIDES.resolve("acme", "chat").decide([card], [], "request").decision is Action.REDACT


# ---------------------------------------------------------------- versions


def test_the_version_goes_by_what_a_policy_says() -> None:
    one = parse("name: a\nguards: {pii: {threshold: 0.5}}\n")
    assert one.version == parse("# a comment\nguards: {pii: {}}\nname: a\n").version
    assert one.version != parse("name: a\nguards: {pii: {threshold: 0.51}}\n").version
    assert len(one.version) == 12


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "name: a\nguards: {toxicity: {treshold: 0.3}}",
            "guards.toxicity.treshold: unknown key; did you mean 'threshold'?",
        ),
        ("name: a\ngards: {}", "gards: unknown key; did you mean 'guards'?"),
        ("name: a\nguards: {toxic: {}}", "guards.toxic: no guard is called 'toxic'; did you mean 'toxicity'?"),
        (
            "name: a\nguards: {pii: {}}\nrules: [{name: r, guard: pii, action: redact, kind: [PERSON]}]",
            "rules.0.kind: unknown key; did you mean 'kinds'?",
        ),
        (
            "name: a\nguards: {pii: {}}\nrules: [{name: r, guard: injection, action: block}]",
            "rules.0.guard: the guard 'injection' is not switched on; add it under guards",
        ),
        (
            "name: a\nguards: {pii: {}}\nrules: [{name: r, guard: pii, action: redact}]\n"
            "overrides: [{when: {tenant: x}, without_rules: [s]}]",
            "overrides.0.without_rules: no rule is named 's'; known are r",
        ),
        ("name: a\noverrides: [{when: {tenent: x}}]", "overrides.0.when.tenent: unknown key; did you mean 'tenant'?"),
        ("guards: {}", "name: missing"),
    ],
)
def test_faults_are_told_with_their_key_path_and_the_nearest_name(text: str, expected: str) -> None:
    assert expected in problems(text)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("name: a\nguards: {pii: {threshold: 1.1}}", "guards.pii.threshold: "),
        ("name: a\nguards: {pii: {on_failure: alow}}", "guards.pii.on_failure"),
        ("name: A b", "name: "),
        ("name: a\nguards: {pii: {}}\nrules: [{name: r, guard: pii, action: mask}]", "rules.0.action: "),
        ("name: a\nname: b", "the key 'name' is written twice"),
        ("name: &n a\ndescription: *n", "aliases"),
        ("- name", "expected a mapping"),
        ("name: [", "not valid YAML"),
        (
            "name: a\nguards: {pii: {}}\n"
            "rules: [{name: r, guard: pii, action: flag}, {name: r, guard: pii, action: flag}]",
            "two rules are named 'r'",
        ),
    ],
)
def test_faulty_files_are_refused(text: str, part: str) -> None:
    assert any(part in problem for problem in problems(text))


def test_a_file_that_cannot_be_read_is_a_policy_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be read"):
        Policy.load(tmp_path / "missing.yaml")


def test_every_fault_is_told_at_once() -> None:
    assert len(problems("nam: a\nguards: {toxicity: {treshold: 0.3, inlin: true}}")) == 4


# ---------------------------------------------------------------- options of guards


class Topic(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("A topic needs a name")


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    topics: tuple[Topic, ...] = ()
    by_name: dict[str, Topic] = {}
    one: Topic | None = None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"topic": []}, "o.topic: unknown key; did you mean 'topics'?"),
        ({"topics": [{"name": "a"}, {"nme": "b"}]}, "o.topics.1.nme: unknown key; did you mean 'name'?"),
        ({"by_name": {"x": {"wight": 1}}}, "o.by_name.*.wight: unknown key; did you mean 'weight'?"),
        ({"one": {"nam": "a"}}, "o.one.nam: unknown key; did you mean 'name'?"),
        ({"topics": [{"name": 3}]}, "o.topics.0.name: expected `str`, got `int`"),
        ({"topics": {"name": "a"}}, "o.topics: expected `array`, got `object`"),
        ({"topics": [{}]}, "o.topics.0: object missing required field `name`"),
        ({"topics": [{"name": ""}]}, "o.topics.0: A topic needs a name"),
    ],
)
def test_faults_in_nested_options_are_told_with_their_key_path(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(PolicyError) as caught:
        options_of(Options, options, "o")
    assert caught.value.problems == [expected]


def test_options_are_typed_and_lists_become_tuples() -> None:
    assert options_of(Options, {"topics": [{"name": "a", "weight": 2}]}, "o") == Options((Topic("a", 2.0),))
