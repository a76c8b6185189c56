"""How redaction rules mask, from the operators to the engine's redactions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from guards.engine import Engine
from guards.errors import PolicyError
from guards.guard import Needs, NoOptions
from guards.masking import MAX_MASK_CHARS, replacement
from guards.policy import Policy
from guards.types import Exchange, Hit, Message, Range, Unit

POLICY = """
name: masked
guards: {pii: {}}
rules: [{name: redact, guard: pii, action: redact, mask: MASK}]
"""


def test_operators() -> None:
    assert replacement("replace", "PERSON", 8) == "<PERSON>"
    assert replacement("mask", "PERSON", 8) == "********"
    assert replacement("mask", "PERSON", 100) == "*" * MAX_MASK_CHARS
    assert replacement("hash", "PERSON", 8, lambda: "0123456789abcdef") == "<PERSON:0123456789ab>"
    assert replacement("hash", "PERSON", 8) == "<PERSON>"
    with pytest.raises(ValueError, match="rot13"):
        replacement("rot13", "PERSON", 8)  # type: ignore[arg-type]


class Marks:
    """Finds the words in capitals."""

    name = "pii"
    version = "1"
    stages = frozenset(("request", "response"))
    unit = "text"
    options_type = NoOptions

    def applies(self, unit: Unit, options: Any) -> bool:
        return True

    def needs(self, unit: Unit, options: Any) -> Needs:
        return Needs()

    def check(self, units: Sequence[Unit], options: Any, artifacts: Any) -> list[list[Hit]]:
        return [
            [
                Hit(kind, 1.0, (Range(text.index(word), text.index(word) + len(word)),))
                for kind, word in (("PERSON", "JANE"), ("EMAIL_ADDRESS", "J@X"))
                if word in text
            ]
            for text in (unit.texts[0].text for unit in units)
        ]


def replacements(mask: str, text: str = "JANE at J@X", tenant: str = "acme", *, keyed: bool = True) -> list[str]:
    hasher = (lambda tenant, text: f"{tenant}-{text.lower()}-0000000000000000") if keyed else None
    engine = Engine(Policy.parse(POLICY.replace("MASK", mask)), guards={"pii": Marks()}, hasher=hasher)  # type: ignore[dict-item]
    decision = engine.check(Exchange(messages=[Message("user", text)], tenant=tenant), "request")
    return [item.replacement for item in decision.redactions]


def test_the_default_names_the_kind() -> None:
    assert replacements("replace") == ["<PERSON>", "<EMAIL_ADDRESS>"]


def test_a_rule_masks_all_kinds_or_by_kind() -> None:
    assert replacements("mask") == ["****", "***"]
    assert replacements("{PERSON: mask}") == ["****", "<EMAIL_ADDRESS>"]


def test_a_hash_is_of_the_text_under_the_tenants_key() -> None:
    assert replacements("hash") == ["<PERSON:acme-jane-00>", "<EMAIL_ADDRESS:acme-j@x-000>"]
    assert replacements("hash", tenant="other")[0] == "<PERSON:other-jane-0>"


def test_without_a_key_a_hash_becomes_the_kind() -> None:
    assert replacements("hash", keyed=False) == ["<PERSON>", "<EMAIL_ADDRESS>"]


@pytest.mark.parametrize(
    ("mask", "action", "message"),
    [
        ("rot13", "redact", "mask"),
        ("{PERSON: rot13}", "redact", "mask"),
        ("mask", "block", "goes with the action redact"),
    ],
)
def test_a_wrong_mask_is_refused(mask: str, action: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        Policy.parse(POLICY.replace("MASK", mask).replace("action: redact", f"action: {action}"))
