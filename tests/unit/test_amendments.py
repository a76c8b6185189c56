"""An amendment is a revision: it names its decision, and nothing counts it as a second one."""

from __future__ import annotations

from typing import Any

import msgspec

from guards.policy import configs_folder
from guards.types import Action, PolicyRef, Reason
from streams.events import Labels
from streams.monitor.facts import Fact, addition_of, duplicate, read
from streams.monitor.prices import load_prices
from streams.monitor.windows import Series
from streams.records import DecisionRecord, amendment_of, encode
from streams.topics import DECISIONS

NOW_MS = 1_800_000_000_000


def decision(said: str = "allow", *reasons: Reason, **more: Any) -> DecisionRecord:
    return DecisionRecord(
        exchange_id="x",
        conversation_id="c",
        tenant="acme",
        stage="response",
        path="stream",
        content_hash="h",
        time="2027-01-15T07:59:00.000Z",
        decision=said,
        policy=PolicyRef("p", "1"),
        labels=Labels(tenant="acme", route="chat"),
        reasons=reasons,
        **more,
    )


def reason(guard: str, rule: str, action: Action = Action.BLOCK) -> Reason:
    return Reason(guard, "harm", rule, 0.9, 0.5, action)


def fact_of(record: msgspec.Struct) -> Fact:
    fact = read(DECISIONS, encode(record), NOW_MS)
    assert isinstance(fact, Fact)
    return fact


def test_an_amendment_has_the_key_of_its_decision_and_a_time_of_its_own() -> None:
    record = decision("block", reason("judge", "judged"), run="r")
    amendment = amendment_of(record, NOW_MS)
    assert amendment.key == record.key
    assert (amendment.event_time, amendment.revision, amendment.run) == (record.time, 1, "r")
    said = msgspec.json.decode(encode(amendment))
    assert said["schema"] == "tidegate.amendment.v1"
    assert said["time"] == "2027-01-15T08:00:00.000Z"
    assert [entry["rule"] for entry in said["reasons"]] == ["judged"]


def test_both_are_claimed_apart_and_what_they_found_together() -> None:
    said = fact_of(decision("block", reason("pii", "one"), reason("judge", "both")))
    amended = fact_of(amendment_of(decision("block", reason("judge", "both"), reason("judge", "two")), NOW_MS))
    assert said.claim != amended.claim
    assert said.once["block:response:both"] == amended.once["block:response:both"]
    assert set(amended.once) == {"block:response:both", "block:response:two", "finding:judge:harm"}


def test_windows_count_what_an_amendment_is_first_to_tell_and_no_decision() -> None:
    fact = fact_of(amendment_of(decision("block", reason("judge", "judged")), NOW_MS))
    series = Series("acme", "chat", "", "", "")
    added = addition_of(
        fact, fact.labels(), series, load_prices(configs_folder() / "prices.yaml"), own=("block:response:judged",)
    )
    assert added.counters == {"block:response:judged": 1}
    assert added.time_ms == NOW_MS
    assert not added.totals
    assert not duplicate(fact).totals
