"""The judge and the webhook without a network: what they ask, what they take for an answer, and what they send."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards import judge, webhook
from guards.artifacts import Artifacts
from guards.engine import Engine
from guards.errors import ConfigError
from guards.outside import Budget, Call, OutsideError, Reply, ask, sampled
from guards.policy import GuardRule, GuardSettings, Override, Policy, PolicyDocument, Selector
from guards.text import texts_of
from guards.types import Action, Document, Exchange, Failed, Failure, FailureCode, Hit, Message, Range, Stage, Unit

RUBRIC = [
    {"name": "harm", "description": "It could hurt somebody."},
    {"name": "off_topic", "description": "It is not about insurance."},
]
JUDGE = {"endpoint": "https://judge.example/v1", "model": "m", "criteria": RUBRIC}
HOOK = {"url": "https://hook.example/check", "kinds": ["odd", "worse"]}


def judge_options(**more: Any) -> judge.Options:
    return msgspec.convert({**JUDGE, **more}, judge.Options)


def hook_options(**more: Any) -> webhook.Options:
    return msgspec.convert({**HOOK, **more}, webhook.Options)


def exchange(question: str, answer: str | None = None, **more: Any) -> Exchange:
    response = None if answer is None else [Message("assistant", answer)]
    return Exchange(messages=[Message("user", question)], response=response, exchange_id="x", **more)


def unit_of(made: Exchange, stage: Stage = "request") -> Unit:
    return Unit(texts_of(made, stage), made, stage)


def completion(content: Any, finish: str = "stop") -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}, "finish_reason": finish}]}).encode()


class Services:
    """Answers from a list, the last one for good; keeps what it was asked. ``calls_left``: its budget."""

    def __init__(self, *answers: Reply | OutsideError, calls_left: int = 1_000) -> None:
        self.answers = list(answers)
        self.calls_left = calls_left
        self.asked: list[dict[str, Any]] = []
        self.paused_s = 0.0

    def post(self, url: str, body: bytes, headers: Mapping[str, str], **how: Any) -> Reply:
        self.asked.append({"url": url, "body": body, "headers": dict(headers), **how})
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, OutsideError):
            raise answer
        return answer

    def spend(self, guard: str, budget: Budget) -> bool:
        self.calls_left -= 1
        return self.calls_left >= 0

    def pause(self, seconds: float) -> None:
        self.paused_s += seconds

    def now_s(self) -> float:
        return self.paused_s


def look(guard: Any, unit: Unit, options: Any, services: Services) -> Any:
    (result,) = guard.check([unit], options, Artifacts(None, None, outside=services))
    return result


# ---------------------------------------------------------------- asking


def call(**more: Any) -> Call:
    fields = {"guard": "g", "url": "https://s.example", "body": b"{}", "headers": {}, "timeout_s": 60.0, "retries": 2}
    return Call(**{**fields, **more})


def test_what_may_be_better_a_moment_later_is_asked_again() -> None:
    services = Services(Reply(503, b""), OutsideError(FailureCode.UNREACHABLE, "reset"), Reply(200, b"yes"))
    assert ask(services, call(), services.now_s) == b"yes"
    assert services.paused_s > 0


@pytest.mark.parametrize("status", [301, 307, 400, 401, 404])
def test_what_will_be_no_better_is_not_asked_again(status: int) -> None:
    services = Services(Reply(status, b"yes"))
    assert ask(services, call(), services.now_s) == Failure(FailureCode.UNREACHABLE)
    assert len(services.asked) == 1


def test_the_last_failure_is_told() -> None:
    services = Services(Reply(500, b""), Reply(500, b""), OutsideError(FailureCode.TIMEOUT, "slow"))
    assert ask(services, call(), services.now_s) == Failure(FailureCode.TIMEOUT)
    assert len(services.asked) == 3


def test_pauses_end_with_the_time_that_there_is() -> None:
    services = Services(Reply(500, b""))
    ask(services, call(timeout_s=1.0, retries=5), services.now_s)
    assert services.paused_s < 1.0
    assert all(asked["timeout_s"] <= 1.0 for asked in services.asked)


def test_every_attempt_is_paid_for_and_none_is_made_without() -> None:
    services = Services(Reply(500, b""), calls_left=2)
    assert ask(services, call(budget=Budget(per_day=2)), services.now_s) == Failure(FailureCode.OVER_BUDGET)
    assert len(services.asked) == 2


@given(st.text(max_size=30), st.floats(0, 1))
def test_a_sample_is_the_same_on_replay_and_grows_with_its_share(identity: str, share: float) -> None:
    made = Exchange(exchange_id=identity)
    assert sampled(made, 1.0)
    assert not sampled(made, 0.0)
    assert sampled(made, share) == sampled(Exchange(exchange_id=identity, route="other"), share)
    assert sampled(made, min(1.0, share + 0.2)) or not sampled(made, share)


def test_a_sample_has_about_its_share() -> None:
    taken = sum(sampled(Exchange(exchange_id=f"x-{n}"), 0.25) for n in range(4_000))
    assert 850 < taken < 1_150


# ---------------------------------------------------------------- the judge


def question(options: judge.Options, unit: Unit, mark: str = "MARK") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(judge.write_question(unit, options, mark))
    return found


def test_the_judge_asks_for_a_score_per_criterion() -> None:
    services = Services(Reply(200, completion('{"harm": 0.91234, "off_topic": 0}')))
    result = look(judge.Judge(), unit_of(exchange("Hello")), judge_options(), services)
    assert result == [Hit("harm", 0.912), Hit("off_topic", 0.0)]
    (asked,) = services.asked
    assert asked["url"] == "https://judge.example/v1/chat/completions"
    body = json.loads(asked["body"])
    assert body["temperature"] == 0
    assert set(body["response_format"]["json_schema"]["schema"]["properties"]) == {"harm", "off_topic"}
    assert all(entry["description"] in body["messages"][0]["content"] for entry in RUBRIC)


def test_the_answer_is_judged_with_its_request_and_documents() -> None:
    made = exchange("Who won?", "Nobody did.", documents=[Document("It was a draw.")])
    text = question(judge_options(), unit_of(made, "response"))["messages"][1]["content"]
    assert [line for line in text.splitlines() if line.startswith("[MARK")] == [
        "[MARK user]", "[MARK end]", "[MARK document]", "[MARK end]", "[MARK answer]", "[MARK end]",
    ]  # fmt: skip
    assert text.index("It was a draw.") < text.index("[MARK answer]") < text.index("Nobody did.")


def test_no_text_can_end_itself() -> None:
    """The mark is another one each time, so a text that has seen one cannot speak outside its place."""
    services = Services(Reply(200, completion('{"harm": 0, "off_topic": 0}')))
    unit = unit_of(exchange("Hello"))
    for _ in range(3):
        look(judge.Judge(), unit, judge_options(), services)
    texts = {json.loads(asked["body"])["messages"][1]["content"] for asked in services.asked}
    assert len(texts) == 3


def test_what_a_model_refuses_can_be_left_out() -> None:
    body = question(judge_options(temperature=None, seed=None, answer_format="none"), unit_of(exchange("Hello")))
    assert not {"temperature", "seed", "response_format"} & set(body)


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    options = judge_options(api_key_env="A_JUDGES_KEY")
    services = Services(Reply(200, completion('{"harm": 0, "off_topic": 0}')))
    monkeypatch.delenv("A_JUDGES_KEY", raising=False)
    with pytest.raises(ConfigError, match="A_JUDGES_KEY"):
        look(judge.Judge(), unit_of(exchange("Hello")), options, services)
    monkeypatch.setenv("A_JUDGES_KEY", "k")
    look(judge.Judge(), unit_of(exchange("Hello")), options, services)
    assert services.asked[0]["headers"]["Authorization"] == "Bearer k"


@pytest.mark.parametrize("how", ["redacted", "raw"])
def test_personal_data_leaves_only_when_the_policy_says_raw(how: str) -> None:
    text = "My card is 4111 1111 1111 1111, write to jane@example.org, sk-ant-api03-abcdefghijklmnopqrstuv"
    made = Exchange(messages=[Message("system", text), Message("user", text)], documents=[Document(text)])
    body = judge.write_question(unit_of(made), judge_options(texts=how), "MARK").decode()
    hooked = webhook.write_question(unit_of(made), hook_options(texts=how)).decode()
    for said in (body, hooked):
        for secret in ("4111 1111", "jane@example.org", "abcdefghijklmnopqrstuv"):
            assert (secret in said) == (how == "raw")


@given(st.text(alphabet=st.characters(), max_size=200))
def test_what_is_sent_is_as_long_as_what_there_is(text: str) -> None:
    made = exchange("a" + text)
    sent = json.loads(webhook.write_question(unit_of(made), hook_options()))
    assert len(sent["texts"][0]["text"]) == len(text) + 1


NAMES = ["harm", "off_topic"]


@pytest.mark.parametrize(
    "text",
    [
        '{"harm": 0.5, "off_topic": 1}',
        '```json\n{"harm": 0.5, "off_topic": 1}\n```',
        'Here you are: {"off_topic": 1.0, "harm": 0.5, "why": "it is {bad}"} I hope it helps.',
    ],
)
def test_scores_are_read_from_between_words(text: str) -> None:
    assert judge.scores_of(text, NAMES) == {"harm": 0.5, "off_topic": 1.0}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot help with that.",
        "{",
        "}{",
        '{"harm": 0.5}',
        '{"harm": 0.5, "off_topic": 1.2}',
        '{"harm": 0.5, "off_topic": -0.1}',
        '{"harm": 0.5, "off_topic": true}',
        '{"harm": 0.5, "off_topic": "1"}',
        '{"harm": 0.5, "off_topic": null}',
        '{"harm": NaN, "off_topic": 1}',
        '{"harm": 1e999, "off_topic": 1}',
        f'{{"harm": {"9" * 5_000}, "off_topic": 1}}',
        '{"harm": 0, "harm": 1, "off_topic": 1}',
        'The text says {"harm": 0, "off_topic": 0} but I say {"harm": 1, "off_topic": 1}',
        '{"a":' * 3_000 + "1" + "}" * 3_000,
        '{"harm": 0.5, "off_topic": 1}' + " " * 20_000,
    ],
)
def test_what_is_no_answer_is_none(text: str) -> None:
    assert judge.scores_of(text, NAMES) is None


@given(st.text() | st.text(alphabet='{}[]",:0123456789.eE-+ harm_oftpic\\ntrue', max_size=300))
def test_any_text_is_scores_or_none(text: str) -> None:
    scores = judge.scores_of(text, NAMES)
    assert scores is None or (list(scores) == NAMES and all(0 <= score <= 1 for score in scores.values()))


@given(
    st.dictionaries(st.sampled_from(NAMES), st.floats(0, 1), min_size=2),
    st.text(alphabet=st.characters(exclude_characters="{}"), max_size=100),
    st.text(alphabet=st.characters(exclude_characters="{}"), max_size=100),
)
def test_whatever_words_stand_around_it_the_object_counts(scores: dict[str, float], before: str, after: str) -> None:
    assert judge.scores_of(before + json.dumps(scores) + after, NAMES) == {
        name: round(scores[name], 3) for name in NAMES
    }


@given(st.binary(max_size=300) | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps))
def test_any_body_is_a_result(body: bytes | str) -> None:
    raw = body.encode() if isinstance(body, str) else body
    assert judge.read_answer(raw, judge_options()) == Failure(FailureCode.BAD_ANSWER)
    assert webhook.read_answer(raw, unit_of(exchange("Hello")), hook_options()) == Failure(FailureCode.BAD_ANSWER)


@pytest.mark.parametrize("finish", ["length", "content_filter"])
def test_half_an_answer_is_none(finish: str) -> None:
    body = completion('{"harm": 0.5, "off_topic": 1}', finish)
    assert judge.read_answer(body, judge_options()) == Failure(FailureCode.BAD_ANSWER)


def test_too_much_for_the_judge_is_refused_unasked() -> None:
    services = Services(Reply(200, b""))
    made = exchange("a" * 60, "b" * 60)
    result = look(judge.Judge(), unit_of(made, "response"), judge_options(max_chars=100), services)
    assert result == Failure(FailureCode.INPUT_TOO_LARGE)
    assert not services.asked


# ---------------------------------------------------------------- the webhook


def test_findings_come_back_with_their_places() -> None:
    answer = {"findings": [{"kind": "odd", "score": 0.7, "spans": [{"start": 6, "end": 11}]}]}
    services = Services(Reply(200, json.dumps(answer).encode()))
    made = exchange("Hello", "Hello world")
    result = look(webhook.Webhook(), unit_of(made, "response"), hook_options(), services)
    assert result == [Hit("odd", 0.7, (Range(6, 11, 0),))]
    sent = json.loads(services.asked[0]["body"])
    assert [entry["text"] for entry in sent["texts"]] == ["Hello world"]
    assert [entry["text"] for entry in sent["request"]] == ["Hello"]
    assert services.asked[0]["allow_private"] is False


def test_the_body_is_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "s3cret")
    monkeypatch.setenv("A_TOKEN", "t0ken")
    options = hook_options(secret_env="A_SECRET", headers=[{"name": "X-Token", "env": "A_TOKEN"}])
    services = Services(Reply(200, b'{"findings": []}'))
    assert look(webhook.Webhook(clock=lambda: 1_700_000_000.9), unit_of(exchange("Hello")), options, services) == []
    (asked,) = services.asked
    mac = hmac.new(b"s3cret", b"1700000000." + asked["body"], "sha256").hexdigest()
    assert asked["headers"] == {"X-Token": "t0ken", webhook.SIGNATURE_HEADER: f"t=1700000000,v1={mac}"}


@pytest.mark.parametrize(
    "findings",
    [
        [{"kind": "unheard-of", "score": 0.5}],
        [{"kind": "odd", "score": 1.5}],
        [{"kind": "odd", "score": "0.5"}],
        [{"kind": "odd"}],
        [{"kind": "odd", "score": 0.5, "extra": 1}],
        [{"kind": "odd", "score": 0.5, "spans": [{"start": 0, "end": 6}]}],
        [{"kind": "odd", "score": 0.5, "spans": [{"start": 3, "end": 2}]}],
        [{"kind": "odd", "score": 0.5, "spans": [{"start": -1, "end": 2}]}],
        [{"kind": "odd", "score": 0.5, "spans": [{"start": 0, "end": 1, "text": 1}]}],
        [{"kind": "odd", "score": 0.5, "spans": [{"start": 0, "end": 1}] * 101}],
        [{"kind": "odd", "score": 0.5}] * 101,
        {},
    ],
)
def test_one_wrong_finding_spoils_the_answer(findings: Any) -> None:
    body = json.dumps({"findings": findings}).encode()
    result = webhook.read_answer(body, unit_of(exchange("Hello")), hook_options())
    assert result == Failure(FailureCode.BAD_ANSWER)


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (judge_options, {"criteria": []}),
        (judge_options, {"criteria": [RUBRIC[0], RUBRIC[0]]}),
        (judge_options, {"criteria": [{"name": "Not A Kind", "description": "x"}]}),
        (judge_options, {"endpoint": "judge.example"}),
        (judge_options, {"endpoint": "https://key:secret@judge.example/v1"}),
        (judge_options, {"sample": 1.1}),
        (judge_options, {"budget": {"per_minute": 0}}),
        (judge_options, {"api_key": "sk-…"}),
        (hook_options, {"url": "http://hook.example"}),
        (hook_options, {"url": "file:///etc/passwd"}),
        (hook_options, {"kinds": []}),
        (hook_options, {"headers": [{"name": "X-Token\r\nHost", "env": "A"}]}),
    ],
)
def test_options_that_mean_nothing_are_refused(make: Callable[..., Any], wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        make(**wrong)


# ---------------------------------------------------------------- in the engine


def policy(**judge_settings: Any) -> Policy:
    settings = {"options": JUDGE, "on_failure": "block", **judge_settings}
    return Policy(
        PolicyDocument(
            name="test",
            guards={"secrets": GuardSettings(), "judge": GuardSettings(**settings)},
            rules=(GuardRule(name="judged", guard="judge", kinds=("harm",), action=Action.BLOCK),),
        )
    )


def test_everywhere_else_a_slow_guard_is_pending_and_nobody_is_asked() -> None:
    decision = Engine(policy()).check(exchange("Hello"), "request", inline_only=True)
    assert decision.decision is Action.ALLOW
    assert decision.coverage.pending == ("judge",)
    assert decision.coverage.scanned == ("secrets",)
    assert not decision.coverage.failed


def test_who_is_not_in_the_sample_is_skipped_on_both_sides() -> None:
    chosen = policy(options={**JUDGE, "sample": 0.0})
    assert Engine(chosen).check(exchange("Hello"), "request").coverage.skipped == ("judge",)
    slow = Engine(chosen, outside=Services(Reply(500, b"")))
    from guards.engine import Item

    assert slow.scan([Item(exchange("Hello"), "request")]).nothing_to_do


def test_the_slow_engine_runs_slow_guards_only_and_decides_by_the_policy() -> None:
    services = Services(Reply(200, completion('{"harm": 0.9, "off_topic": 0.1}')))
    engine = Engine(policy(), outside=services)
    assert set(engine.guards) == {"judge"}
    decision = engine.check(exchange("Hello"), "request")
    assert decision.decision is Action.BLOCK
    assert [reason.rule for reason in decision.reasons] == ["judged"]
    assert decision.coverage.scanned == ("judge",)
    assert not decision.coverage.skipped


def test_a_judge_that_could_not_look_has_failed_and_the_policy_says_what_that_means() -> None:
    engine = Engine(policy(), outside=Services(Reply(200, completion("no"))))
    decision = engine.check(exchange("Hello"), "request")
    assert decision.coverage.failed == (Failed("judge", FailureCode.BAD_ANSWER),)
    assert decision.decision is Action.BLOCK


def test_bad_options_are_told_by_every_process() -> None:
    with pytest.raises(ConfigError, match=r"guards\.judge\.options.*endpoint"):
        Engine(policy(options={"model": "m", "criteria": RUBRIC}))


def test_an_override_may_change_one_option() -> None:
    document = policy().document.model_copy(
        update={"overrides": (Override(when=Selector(tenant="acme"), guards={"judge": {"options": {"sample": 0.0}}}),)}
    )
    engine = Engine(Policy(PolicyDocument.model_validate(document.model_dump())))
    assert engine.check(exchange("Hello"), "request").coverage.pending == ("judge",)
    assert engine.check(exchange("Hello", tenant="acme"), "request").coverage.pending == ()
