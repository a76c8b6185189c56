"""`tidegate check`: one text through the real engine, in this process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from streams.commands.console import EXIT_NO, EXIT_OK, JsonOption, ProfileOption, print_json, show_table

if TYPE_CHECKING:
    from guards.types import Decision
    from streams.gateway.checker import Answer

__all__ = ["check"]


def check(
    text: Annotated[str, typer.Argument(metavar="TEXT|-", help="What to check; - reads standard input.")],
    stage: Annotated[
        Literal["request", "response"], typer.Option(help="request: a prompt; response: a model's answer.")
    ] = "request",
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: the profile's policy file, or the stock policy.")
    ] = None,
    question: Annotated[
        str | None, typer.Option(help="What was asked (--stage response); without it the request is not known.")
    ] = None,
    document: Annotated[
        list[str] | None, typer.Option(metavar="TEXT|@FILE", help="A document the answer rests on; may be repeated.")
    ] = None,
    tenant: Annotated[str, typer.Option(help="For the policy's overrides.")] = "default",
    route: Annotated[str, typer.Option(help="For the policy's overrides.")] = "",
    profile: ProfileOption = None,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 1 unless the decision is allow.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check one text with the real guards, in this process: no broker, no store, no network.

    Prints the decision, why, and the redacted text; with --json the sidecar's native answer. Exit code 0 if it could
    be checked, whatever the decision.
    """
    if question is not None and stage == "request":
        raise typer.BadParameter("--question goes with --stage response; at the request stage TEXT is the question")
    from guards.engine import Engine
    from guards.policy import Policy
    from streams.settings import load_settings

    event = _event(text, stage, question, document or [], tenant, route)
    settings = load_settings(profile)
    file = policy or settings.policy_file
    judging = Policy.default() if file is None else Policy.load(file)
    engine = Engine(judging, models=settings.model_store(), options=settings.guards)
    exchange, fields = event
    decision = engine.check(exchange, stage)
    answer = _answer(decision, fields)
    if as_json:
        print_json(answer)
    else:
        _show(answer)
    raise typer.Exit(EXIT_NO if exit_code and decision.decision != "allow" else EXIT_OK)


def _event(
    text: str, stage: str, question: str | None, documents: list[str], tenant: str, route: str
) -> tuple[Any, dict[str, Any]]:
    """The exchange, and the messages and documents of its stage as JSON objects."""
    import msgspec

    from guards.types import Document, Exchange, Message

    checked = [Message("user" if stage == "request" else "assistant", sys.stdin.read() if text == "-" else text)]
    read = [Document(_read_document(item)) for item in documents]
    asked = checked if stage == "request" else None if question is None else [Message("user", question)]
    exchange = Exchange(
        messages=asked,
        response=None if stage == "request" else checked,
        documents=read,
        tenant=tenant,
        route=route,
    )
    return exchange, {"messages": msgspec.to_builtins(checked), "documents": msgspec.to_builtins(read)}


def _read_document(item: str) -> str:
    from guards.errors import ConfigError

    if not item.startswith("@"):
        return item
    try:
        return Path(item[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--document {item}: cannot be read: {error}") from error


def _answer(decision: Decision, fields: dict[str, Any]) -> Answer:
    import secrets

    import msgspec

    from guards.text import redact, redact_documents
    from guards.types import Action
    from streams.gateway.checker import Answer

    redacted = decision.decision is Action.REDACT
    in_documents = any(item.location.document is not None for item in decision.redactions)
    return Answer(
        decision=decision.decision,
        exchange_id=f"check-{secrets.token_hex(8)}",
        stage=decision.stage,
        policy=decision.policy,
        reasons=decision.reasons,
        coverage=decision.coverage,
        shadow=decision.shadow,
        timing=decision.timing,
        messages=redact(fields["messages"], decision.redactions) if redacted else msgspec.UNSET,
        documents=redact_documents(fields["documents"], decision.redactions) if in_documents else msgspec.UNSET,
    )


def _show(answer: Answer) -> None:
    import msgspec

    print(f"decision: {answer.decision}  (policy {answer.policy.name}, version {answer.policy.version})")
    rows = [
        (
            reason.action,
            reason.guard,
            reason.kind,
            f"{reason.score:.2f}",
            f"{reason.threshold:.2f}",
            rule,
            _places(reason),
        )
        for reasons, suffix in ((answer.reasons, ""), (answer.shadow, " (shadow)"))
        for reason in reasons
        for rule in (reason.rule + suffix,)
    ]
    if rows:
        show_table(("action", "guard", "kind", "score", "threshold", "rule", "where"), rows)
    if answer.messages is not msgspec.UNSET:
        print(f"redacted: {answer.messages[-1]['content']}")
    for number, document in enumerate(() if answer.documents is msgspec.UNSET else answer.documents):
        print(f"document {number}: {document['text']}")
    for failed in answer.coverage.failed:
        print(f"could not look: {failed.guard} ({failed.code})")
    skipped = f"; nothing to look at: {', '.join(answer.coverage.skipped)}" if answer.coverage.skipped else ""
    pending = f"; looks later: {', '.join(answer.coverage.pending)}" if answer.coverage.pending else ""
    scanned = ", ".join(answer.coverage.scanned) or "nobody"
    print(f"looked: {scanned}{skipped}{pending}; {answer.timing.total_ms:.1f} ms")


def _places(reason: Any) -> str:
    """Code points of the first spans; those in documents say so."""
    shown = [
        f"{span.start}-{span.end}" + ("" if span.document is None else f" of document {span.document}")
        for span in reason.spans[:3]
    ]
    return ", ".join(shown) + (" …" if len(reason.spans) > 3 else "")
