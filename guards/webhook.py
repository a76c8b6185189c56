"""A guard behind HTTP: texts are posted to a service of the user's, and its findings come back, strictly checked."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from time import time
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec

from guards.guard import Needs, NoOptions, Result
from guards.outside import MAX_CHARS, Call, Texts, ask, check_url, environment, prepared, sampled, sendable
from guards.policy import options_of
from guards.text import texts_of
from guards.types import Failure, FailureCode, Hit, Range, Stage, Text, Unit

if TYPE_CHECKING:
    from guards.artifacts import Artifacts
    from guards.models import ModelStore

__all__ = ["SIGNATURE_HEADER", "Header", "Options", "Webhook", "build", "read_answer", "signature", "write_question"]

SIGNATURE_HEADER: Final = "Tidegate-Signature"
SCHEMA: Final = "tidegate.webhook.v1"

FINDINGS_MAX: Final = 100
SPANS_MAX: Final = 100  # of one finding

Kind = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$")]
Offset = Annotated[int, msgspec.Meta(ge=0, le=MAX_CHARS)]


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A header whose value stands in the environment variable ``env`` of the slow worker."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9-]{1,64}$")]
    env: str


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``guards.webhook.options`` in a policy.

    ``kinds``: all that the service may find; another one is a bad answer, since kinds label metrics. ``secret_env``:
    the NAME of the environment variable of the slow worker that holds the key of the signature.
    """

    url: str
    kinds: Annotated[tuple[Kind, ...], msgspec.Meta(min_length=1, max_length=50)]
    headers: Annotated[tuple[Header, ...], msgspec.Meta(max_length=20)] = ()
    secret_env: str = ""
    sample: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    texts: Texts = "redacted"
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=120)] = 10.0
    retries: Annotated[int, msgspec.Meta(ge=0, le=5)] = 2
    allow_private: bool = False

    def __post_init__(self) -> None:
        check_url(self.url, plain_http=self.allow_private)


class Webhook:
    """Posts what a stage says to a service and takes its findings for its own: kinds, scores and places."""

    name = "webhook"
    version = "1"
    stages: frozenset[Stage] = frozenset(("request", "response"))
    unit: Literal["text", "exchange"] = "exchange"
    options_type: type[msgspec.Struct] = Options

    def __init__(self, clock: Callable[[], float] = time) -> None:
        self._clock = clock

    def applies(self, unit: Unit, options: Options) -> bool:
        return bool(unit.texts) and sampled(unit.exchange, options.sample)

    def needs(self, unit: Unit, options: Options) -> Needs:
        return Needs()

    def check(self, units: Sequence[Unit], options: Options, artifacts: Artifacts) -> Sequence[Result]:
        """One result per unit: the service's findings, or the failure. Each blocks ``options.timeout_s`` at most."""
        return [self._check(unit, options, artifacts) for unit in units]

    def _check(self, unit: Unit, options: Options, artifacts: Artifacts) -> Result:
        if unit.exchange.messages is None:
            return Failure(FailureCode.REQUEST_MISSING)
        texts = (*unit.texts, *texts_of(unit.exchange, "request"))
        if sum(len(text.text) for text in texts) > MAX_CHARS:
            return Failure(FailureCode.INPUT_TOO_LARGE)
        body = write_question(unit, options)
        headers = {header.name: environment(header.env) for header in options.headers}
        if options.secret_env:
            headers[SIGNATURE_HEADER] = signature(environment(options.secret_env).encode(), body, int(self._clock()))
        call = Call(
            guard=self.name,
            url=options.url,
            body=body,
            headers=headers,
            timeout_s=options.timeout_s,
            retries=options.retries,
            allow_private=options.allow_private,
        )
        answer = ask(artifacts.outside, call)
        return answer if isinstance(answer, Failure) else read_answer(answer, unit, options)


def write_question(unit: Unit, options: Options) -> bytes:
    """The body: see docs/guards/webhook.md. Places in the findings count in ``texts``."""
    exchange = unit.exchange
    body: dict[str, Any] = {
        "schema": SCHEMA,
        "exchange_id": sendable(exchange.exchange_id),
        "tenant": sendable(exchange.tenant),
        "route": sendable(exchange.route),
        "stage": unit.stage,
        "redacted": options.texts == "redacted",
        "texts": _texts(unit, unit.texts, options),
    }
    if unit.stage == "response":
        body["request"] = _texts(unit, texts_of(exchange, "request"), options)
    return json.dumps(body, ensure_ascii=False).encode()


def _texts(unit: Unit, texts: Sequence[Text], options: Options) -> list[dict[str, str]]:
    shown = prepared(unit, texts, options.texts)
    return [{"role": sendable(text.role), "text": string} for text, string in zip(texts, shown, strict=True)]


def signature(secret: bytes, body: bytes, time_s: int) -> str:
    """``t=<seconds>,v1=<hex>``: HMAC-SHA256 over ``<seconds>.<body>``, so that an old question cannot be sent again."""
    return f"t={time_s},v1={hmac.digest(secret, b'%d.' % time_s + body, 'sha256').hex()}"


class _Span(msgspec.Struct, forbid_unknown_fields=True):
    start: Offset
    end: Offset
    text: Offset = 0


class _Finding(msgspec.Struct, forbid_unknown_fields=True):
    kind: Kind
    score: Annotated[float, msgspec.Meta(ge=0, le=1)]
    spans: Annotated[list[_Span], msgspec.Meta(max_length=SPANS_MAX)] = []


class _Answer(msgspec.Struct, forbid_unknown_fields=True):
    findings: Annotated[list[_Finding], msgspec.Meta(max_length=FINDINGS_MAX)]


_answers = msgspec.json.Decoder(_Answer)


def read_answer(body: bytes, unit: Unit, options: Options) -> Result:
    """The service's answer → hits, or ``BAD_ANSWER`` if anything in it is not as documented. Never raises."""
    try:
        answer = _answers.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Failure(FailureCode.BAD_ANSWER)
    hits = []
    for finding in answer.findings:
        if finding.kind not in options.kinds or not all(_lies_in(span, unit) for span in finding.spans):
            return Failure(FailureCode.BAD_ANSWER)
        ranges = tuple(Range(span.start, span.end, span.text) for span in finding.spans)
        hits.append(Hit(finding.kind, round(finding.score, 3), ranges))
    return hits


def _lies_in(span: _Span, unit: Unit) -> bool:
    return span.text < len(unit.texts) and span.start <= span.end <= len(unit.texts[span.text].text)


def build(options: Mapping[str, Any], models: ModelStore) -> Webhook:
    """The guard; nobody is asked. Raises `PolicyError`: the profile has no options for it."""
    options_of(NoOptions, options, "guards.webhook")
    return Webhook()
