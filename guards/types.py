"""The words of the detection core as frozen types: exchange, text, hit, finding, failure, decision.

Offsets are Unicode code points, ends are exclusive. Scores are 0..1 and always mean *risk*: higher is worse, so that
one comparison (``score >= threshold``) serves every guard. Nothing here holds text of a user but `Exchange`, `Message`,
`Document` and `Text`; everything that leaves the engine carries positions and lengths only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Literal

import msgspec

__all__ = [
    "Action",
    "Coverage",
    "Decision",
    "Document",
    "Exchange",
    "Failed",
    "Failure",
    "FailureCode",
    "Finding",
    "Function",
    "Hit",
    "Location",
    "Message",
    "PolicyRef",
    "Range",
    "Reason",
    "Redaction",
    "Span",
    "Stage",
    "Text",
    "Timing",
    "ToolCall",
    "Unit",
    "Verdict",
]

Stage = Literal["request", "response"]


class Action(StrEnum):
    """What a decision says, from the mildest to the strictest."""

    ALLOW = "allow"
    FLAG = "flag"
    REDACT = "redact"
    BLOCK = "block"

    @property
    def severity(self) -> int:
        """0 (allow) to 3 (block); the strictest matching rule wins."""
        return _SEVERITY[self]


_SEVERITY: Mapping[Action, int] = {Action.ALLOW: 0, Action.FLAG: 1, Action.REDACT: 2, Action.BLOCK: 3}


class FailureCode(StrEnum):
    """Why a guard could not look. A bounded set: it labels metrics."""

    TIMEOUT = "timeout"  # the deadline passed before the guard had its turn or its result
    MODEL_UNAVAILABLE = "model_unavailable"
    INPUT_TOO_LARGE = "input_too_large"
    REQUEST_MISSING = "request_missing"  # the guard needs the request of a response, and it never came
    ERROR = "error"  # the guard raised; the class of the exception is in the log, the text never
    # What only slow guards say, which ask a service:
    UNREACHABLE = "unreachable"  # it does not answer, or answers with an error
    BAD_ANSWER = "bad_answer"  # it answered in another form than was asked for
    OVER_BUDGET = "over_budget"  # the calls that the policy allows are spent


# ---------------------------------------------------------------- what is checked


class Function(msgspec.Struct, frozen=True, omit_defaults=True):
    """The callee of a tool call; ``arguments`` is the JSON text that the model wrote."""

    name: str = ""
    arguments: str = ""


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """One tool call of an assistant message, as OpenAI's API writes it."""

    id: str = ""
    type: str = "function"
    function: Function = Function()


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One chat message. ``content`` is a text, OpenAI's list of parts (dicts with a ``type``), or nothing."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[ToolCall] | None = None
    name: str | None = None
    tool_call_id: str | None = None


class Document(msgspec.Struct, frozen=True, omit_defaults=True):
    """A retrieved document that the answer should rest on."""

    text: str
    id: str = ""


class Exchange(msgspec.Struct, frozen=True, omit_defaults=True):
    """One LLM request and, once it is there, its response.

    ``messages`` is ``None`` where the request is not known (a response whose request never came): guards that need
    it then fail with `FailureCode.REQUEST_MISSING`. ``response`` is ``None`` at the request stage. ``reference``: an
    answer known to be good, where there is one. ``logprobs``: of the response's tokens, as the provider wrote them.
    """

    messages: Sequence[Message] | None = None
    response: Sequence[Message] | None = None
    documents: Sequence[Document] = ()
    tenant: str = "default"
    route: str = ""
    exchange_id: str = ""
    reference: str = ""
    logprobs: Any = None


class Location(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a text stands: message ``message`` of its stage, or document ``document`` of the request.

    ``part`` is the index within a list of content parts, ``tool_call`` the index of the call whose arguments it is.
    """

    message: int | None = None
    part: int | None = None
    tool_call: int | None = None
    document: int | None = None


class Text(msgspec.Struct, frozen=True):
    """One string to look at, with its role (`user`, `assistant`, `system`, `tool`, `document`) and its place."""

    text: str
    role: str
    location: Location = Location(message=0)


class Unit(msgspec.Struct, frozen=True):
    """What a guard gets: for a per-text guard one text, for a per-exchange guard all texts of the stage.

    Only per-exchange guards may read ``exchange``: a per-text verdict is cached by its text alone.
    """

    texts: tuple[Text, ...]
    exchange: Exchange
    stage: Stage


# ---------------------------------------------------------------- what guards say


class Range(msgspec.Struct, frozen=True):
    """Code points ``start`` to ``end`` (exclusive) of ``unit.texts[text]``."""

    start: int
    end: int
    text: int = 0


class Hit(msgspec.Struct, frozen=True):
    """What a guard returns: a kind, its risk score 0..1, and where (no ranges: the unit as a whole)."""

    kind: str
    score: float
    ranges: tuple[Range, ...] = ()


class Failure(msgspec.Struct, frozen=True):
    """A guard could not look. Returned, never raised, for one bad text; never confused with a clean result."""

    code: FailureCode


class Span(msgspec.Struct, frozen=True, omit_defaults=True):
    """A place in the exchange, as it goes over the wire (code points, end exclusive).

    Exactly one of ``message`` and ``document`` is set; ``part`` and ``tool_call`` say where in the message.
    """

    start: int
    end: int
    kind: str
    message: int | None = None
    part: int | None = None
    tool_call: int | None = None
    document: int | None = None

    @property
    def location(self) -> Location:
        return Location(message=self.message, part=self.part, tool_call=self.tool_call, document=self.document)


class Finding(msgspec.Struct, frozen=True):
    """What a guard saw in an exchange; the scores below any threshold are findings too."""

    guard: str
    kind: str
    score: float
    spans: tuple[Span, ...] = ()


class Failed(msgspec.Struct, frozen=True):
    """A guard's failure in a decision's coverage."""

    guard: str
    code: FailureCode


# ---------------------------------------------------------------- what the policy says


class PolicyRef(msgspec.Struct, frozen=True):
    """The policy version that a decision rests on."""

    name: str
    version: str


class Reason(msgspec.Struct, frozen=True):
    """Why a decision is what it is: one rule that matched (or one guard that failed: kind ``failure:<code>``)."""

    guard: str
    kind: str
    rule: str
    score: float
    threshold: float
    action: Action
    spans: tuple[Span, ...] = ()


class Redaction(msgspec.Struct, frozen=True):
    """Replace code points ``start`` to ``end`` of the text at ``location`` by ``replacement``."""

    location: Location
    start: int
    end: int
    replacement: str


class Coverage(msgspec.Struct, frozen=True):
    """Which guards looked, which had nothing to look at or were not asked, and which could not.

    ``pending``: slow guards, which look later; what they say comes as an amendment.
    """

    scanned: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    failed: tuple[Failed, ...] = ()
    pending: tuple[str, ...] = ()


class Timing(msgspec.Struct, frozen=True):
    """Milliseconds: in all, and by guard (a guard's share of a batch; shared artifacts under their own names)."""

    total_ms: float = 0.0
    guards: Mapping[str, float] = {}


class Verdict(msgspec.Struct, frozen=True):
    """What `Policy.decide` says: pure, same input, same output."""

    decision: Action
    reasons: tuple[Reason, ...] = ()
    shadow: tuple[Reason, ...] = ()
    redactions: tuple[Redaction, ...] = ()


class Decision(msgspec.Struct, frozen=True):
    """The engine's answer for one exchange and stage. ``findings`` keeps what is below the thresholds too."""

    decision: Action
    stage: Stage
    policy: PolicyRef
    reasons: tuple[Reason, ...] = ()
    shadow: tuple[Reason, ...] = ()
    redactions: tuple[Redaction, ...] = ()
    coverage: Coverage = Coverage()
    findings: tuple[Finding, ...] = ()
    timing: Timing = Timing()
