"""Test cases of a policy: data beside the policy file, run through the real engine.

``strict.yaml`` has its cases in ``strict.cases.yaml``: a list of `Case`. A policy is then tested like code, and a new
version of a guard or a model shows what it changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from guards.engine import Engine, Item
from guards.errors import PolicyError
from guards.policy import Policy
from guards.strict import load_yaml, problems_of
from guards.text import redact
from guards.types import Action, Decision, Document, Exchange, Message, Stage

__all__ = ["Case", "CaseResult", "Expect", "cases_path", "load_cases", "run_cases"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DocumentText(_Strict):
    """A retrieved document."""

    text: str
    id: str = ""


class MessageText(_Strict):
    """A chat message of plain text."""

    role: str
    content: str


class Expect(_Strict):
    """What the policy must say. Only what is written is compared, but failures: a guard that could not look fails the
    case unless it is named under ``failed``."""

    decision: Action
    rules: tuple[str, ...] = Field((), description="Rules that must be among the reasons.")
    not_rules: tuple[str, ...] = Field((), description="Rules that must not be among the reasons.")
    shadow: tuple[str, ...] = Field((), description="Rules that must be among what shadow rules would have done.")
    redacted: str | None = Field(None, description="The last message of the stage as the caller gets it back.")
    failed: tuple[str, ...] = Field((), description="Guards that are expected not to be able to look.")


class Case(_Strict):
    """One exchange at one stage, and what must follow.

    ``text`` is short for one message (of the user at the request stage, of the assistant at the response stage).
    At the response stage ``question`` is the request's user message; without it the request is not known.
    """

    name: str = Field(min_length=1, max_length=200)
    stage: Stage = "request"
    text: str | None = None
    messages: tuple[MessageText, ...] | None = None
    question: str | None = None
    documents: tuple[DocumentText, ...] = Field((), description="Of the request; a plain string is a text without id.")
    reference: str = Field("", description="A good answer, for the guard reference.")
    tenant: str = "default"
    route: str = ""
    expect: Expect

    @field_validator("documents", mode="before")
    @classmethod
    def _strings_are_texts(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return tuple({"text": item} if isinstance(item, str) else item for item in value)

    @model_validator(mode="after")
    def _fits_together(self) -> Case:
        if (self.text is None) == (self.messages is None):
            raise ValueError("give either text or messages")
        if self.question is not None and self.stage == "request":
            raise ValueError("question belongs to stage: response; at the request stage the text is the question")
        return self

    def stage_messages(self) -> list[Message]:
        """The messages that are checked."""
        if self.messages is not None:
            return [Message(message.role, message.content) for message in self.messages]
        return [Message("user" if self.stage == "request" else "assistant", self.text)]

    def exchange(self) -> Exchange:
        checked = self.stage_messages()
        documents = [Document(document.text, document.id) for document in self.documents]
        if self.stage == "request":
            request: list[Message] | None = checked
            response = None
        else:
            request = None if self.question is None else [Message("user", self.question)]
            response = checked
        return Exchange(
            messages=request,
            response=response,
            documents=documents,
            reference=self.reference,
            tenant=self.tenant,
            route=self.route,
        )


class CaseResult(msgspec.Struct, frozen=True):
    """``problems`` is empty when the case holds; it names decisions, rules and guards, and never a text."""

    name: str
    ok: bool
    decision: Action
    problems: tuple[str, ...] = ()


def cases_path(policy: Path) -> Path:
    """``strict.yaml`` → ``strict.cases.yaml`` beside it."""
    return policy.with_name(f"{policy.stem}.cases{policy.suffix}")


def load_cases(path: str | Path) -> tuple[Case, ...]:
    """Read and check a file of cases. Raises `PolicyError` with one line per fault, each with its key path."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(str(path), [f"cannot be read: {error}"]) from error
    data = load_yaml(text, str(path))
    if not isinstance(data, list) or not data:
        raise PolicyError(str(path), ["expected a list of cases"])
    problems: list[str] = []
    cases: list[Case] = []
    for number, item in enumerate(data):
        if not isinstance(item, dict):
            problems.append(f"{number}: expected a mapping with the keys name, text and expect")
            continue
        try:
            cases.append(Case.model_validate(item))
        except ValidationError as error:
            problems += [f"{number}.{problem}" for problem in problems_of(error, Case)]
    names = [case.name for case in cases]
    problems += [f"two cases are named {name!r}" for name in dict.fromkeys(names) if names.count(name) > 1]
    if problems:
        raise PolicyError(str(path), problems)
    return tuple(cases)


def run_cases(engine: Engine, policy: Policy, cases: Sequence[Case]) -> list[CaseResult]:
    """Check all cases in one batch under ``policy``; one result per case, in order. Blocks."""
    decisions = engine.check_batch([Item(case.exchange(), case.stage) for case in cases], policy=policy)
    return [_compare(case, decision) for case, decision in zip(cases, decisions, strict=True)]


def _compare(case: Case, decision: Decision) -> CaseResult:
    expect = case.expect
    rules = {reason.rule for reason in decision.reasons}
    shadowed = {reason.rule for reason in decision.shadow}
    failed = {item.guard: str(item.code) for item in decision.coverage.failed}
    problems: list[str] = []
    if decision.decision is not expect.decision:
        because = ", ".join(f"{r.rule} ({r.kind} {r.score:.2f})" for r in decision.reasons) or "no rule matched"
        problems.append(f"the decision is {decision.decision}, expected {expect.decision}: {because}")
    problems += [f"the rule {name} did not match{_scores(decision)}" for name in expect.rules if name not in rules]
    problems += [f"the rule {name} matched" for name in expect.not_rules if name in rules]
    problems += [f"the shadow rule {name} did not match" for name in expect.shadow if name not in shadowed]
    problems += [f"{guard} could not look: {code}" for guard, code in failed.items() if guard not in expect.failed]
    problems += [f"{guard} could look, expected a failure" for guard in expect.failed if guard not in failed]
    if expect.redacted is not None and _last_text(case, decision) != expect.redacted:
        kinds = ", ".join(item.replacement for item in decision.redactions) or "nothing"
        problems.append(f"the redacted text differs; replaced by: {kinds}")
    return CaseResult(case.name, not problems, decision.decision, tuple(problems))


def _scores(decision: Decision) -> str:
    """The highest score of each guard, so that a threshold can be judged."""
    highest: dict[str, float] = {}
    for finding in decision.findings:
        highest[finding.guard] = max(finding.score, highest.get(finding.guard, 0.0))
    return "; scores: " + ", ".join(f"{guard} {score:.2f}" for guard, score in highest.items()) if highest else ""


def _last_text(case: Case, decision: Decision) -> str | None:
    messages: list[dict[str, Any]] = msgspec.to_builtins(case.stage_messages())
    content = redact(messages, decision.redactions)[-1].get("content")
    return content if isinstance(content, str) else None
