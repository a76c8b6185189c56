"""`tidegate replay`: send recorded events, and verify that every one of them got its decision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streams.commands.console import (
    EXIT_NO,
    EXIT_OK,
    JsonOption,
    KafkaOption,
    PortOption,
    ProfileOption,
    err,
    print_json,
    run,
    say,
    show_table,
)

if TYPE_CHECKING:
    from streams.recording import Options, Plan
    from streams.replay import Counted, Report, Watcher

__all__ = ["replay"]


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE[.gz]", help="Events, one JSON object a line.")],
    rate: Annotated[float | None, typer.Option(min=0.001, help="Events a second.")] = None,
    speed: Annotated[float | None, typer.Option(min=0.001, help="Multiple of recorded time; 1 is as recorded.")] = None,
    fastest: Annotated[bool, typer.Option("--max", help="As fast as the broker takes them (the default).")] = False,
    keep_time: Annotated[bool, typer.Option("--keep-time", help="Leave the events' times as they are.")] = False,
    shuffle_s: Annotated[float, typer.Option(min=0, help="Shuffle within so many seconds of event time.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Of the shuffle. Default: random, and printed.")] = None,
    repeat_every: Annotated[int, typer.Option(min=0, help="Send every N-th event twice.")] = 0,
    timeout_s: Annotated[float, typer.Option(min=1, help="Give up when nothing came for so long.")] = 120.0,
    port: PortOption = None,
    kafka: KafkaOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send recorded events to the topics and wait until each has its decision; workers may be killed meanwhile.

    Broker and topics are the sidecar's (--port), or --kafka. All times are shifted by one constant, so that the last
    event is about now (shift_ms in the JSON). Lines that are no events are sent as they are: each must end as a dead
    letter. The run's records carry the header tidegate-run. Where a sidecar is known, replay also waits until the
    windows have counted everything.

    Exit code 1 when a decision or dead letter is missing, or two different decisions came for one event.
    """
    import secrets

    from streams.recording import Options
    from streams.replay import new_run

    if sum((rate is not None, speed is not None, fastest)) > 1:
        raise typer.BadParameter("give one of --rate, --speed and --max")
    options = Options(
        rate=rate,
        speed=speed,
        keep_time=keep_time,
        shuffle_s=shuffle_s,
        seed=secrets.randbelow(2**31) if seed is None else seed,
        repeat_every=repeat_every,
        timeout_s=timeout_s,
        run=new_run(),
    )
    report = run(_replay(file, options, port=port, kafka=kafka, profile=profile))
    if as_json:
        print_json(report)
    else:
        _show(report)
    raise typer.Exit(EXIT_OK if report.ok else EXIT_NO)


async def _replay(file: Path, options: Options, *, port: int | None, kafka: str | None, profile: str | None) -> Report:
    from streams.commands.sidecar_api import find_kafka
    from streams.recording import Plan, read_lines
    from streams.replay import Replay

    plan = Plan.of(read_lines(file))
    settings, url = await find_kafka(kafka, port, profile)
    counted = None if url is None else await _windows(url)
    if options.shuffle_s > 0:
        say(f"shuffling with --seed {options.seed}")
    with _progress(plan) as watcher:
        return await Replay(settings, file, plan, options, watcher, counted).run()


async def _windows(url: str) -> Counted | None:
    """How to ask the sidecar what the windows have counted; ``None`` if it has no windows."""
    from streams.commands.sidecar_api import SidecarUnreachableError, get_json

    async def counted() -> Mapping[str, Mapping[str, int]] | None:
        try:
            found = (await get_json(url, "/v1/windows", {"total": "true"})).get("counted")
        except SidecarUnreachableError:
            return None  # it may be starting again; the replay gives up by itself
        return found if isinstance(found, dict) else None

    try:
        await get_json(url, "/v1/windows", {"total": "true"})
    except SidecarUnreachableError as error:
        if error.status == 404:
            say(f"the sidecar at {url} serves no windows: not waiting for them")
            return None
    return counted


class _Bars:
    """Two bars on stderr: sent, decided."""

    def __init__(self, plan: Plan) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        console = err()
        columns = (TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._sent = self.progress.add_task("sent", total=plan.events + plan.bad)
        self._decided = self.progress.add_task("decided", total=sum(plan.wanted.values()))

    def show(self, sent: int, decided: int) -> None:
        self.progress.update(self._sent, completed=sent)
        self.progress.update(self._decided, completed=decided)

    def say(self, message: str) -> None:
        say(message)


@contextmanager
def _progress(plan: Plan) -> Iterator[Watcher]:
    bars = _Bars(plan)
    with bars.progress:
        yield bars


def _show(report: Report) -> None:
    decisions = ", ".join(f"{name} {count:,}" for name, count in report.by_decision.items()) or "none"
    letters = f"{report.dead_letters:,}"
    if report.dead_letters_expected or report.dead_letters:
        letters += f" (expected {report.dead_letters_expected:,})"
    show_table(
        ("replay", report.run),
        [
            ("events", f"{report.events:,} ({report.sent:,} records sent)"),
            ("decisions", f"{report.decisions:,}: {decisions}"),
            ("missing", f"{report.missing:,}"),
            ("doubled", f"{report.doubled:,} ({report.repeated:,} repeated)"),
            ("dead letters", letters),
            ("time", f"{report.seconds:,.1f} s, {report.events_per_s:,.0f} events/s"),
            ("shifted by", f"{report.shift_ms:,} ms"),
            ("windows", "counted" if report.windows_counted else "not known to have counted everything"),
        ],
    )
    if not report.ok:
        say(f"missing {report.missing}, doubled {report.doubled}")
