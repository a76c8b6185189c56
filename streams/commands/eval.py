"""`tidegate eval`: how good a guard is on labelled files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from streams.commands.console import (
    EXIT_NO,
    EXIT_OK,
    JsonOption,
    ProfileOption,
    err,
    print_json,
    say,
    show_table,
)

if TYPE_CHECKING:
    from guards.evaluation.report import Figures, LabelFigures, Report
    from guards.policy import Policy

__all__ = ["evaluate"]


def evaluate(
    guard: Annotated[str, typer.Argument(metavar="GUARD", help="A guard's name, as in a policy.")],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE…", help="Labelled rows: .jsonl or a JSON array (.json), also .gz.")
    ],
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Options and threshold are this policy's. Default: the profile's, or stock."),
    ] = None,
    options: Annotated[
        str | None, typer.Option(metavar="JSON", help="The guard's options, instead of the policy's.")
    ] = None,
    guard_options: Annotated[
        str | None, typer.Option(metavar="JSON", help='Over the profile\'s, such as {"backend": "detoxify"}.')
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Default: the lowest at which a rule of the policy acts.")
    ] = None,
    kind: Annotated[list[str] | None, typer.Option(help="Only findings of this kind; may be repeated.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Only places with this label (rows with spans); may be repeated.")
    ] = None,
    suggest: Annotated[
        list[str] | None, typer.Option(metavar="precision=P|recall=R|fpr=F", help="Find a threshold; may be repeated.")
    ] = None,
    field: Annotated[
        list[str] | None, typer.Option(metavar="OURS=THEIRS", help="A field's name in the files; may be repeated.")
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="For by_label. Default: functionality, kind or attack_type."),
    ] = None,
    stage: Annotated[
        Literal["request", "response"] | None,
        typer.Option(help="Default: request, for texts and a guard that looks at requests."),
    ] = None,
    role: Annotated[
        Literal["user", "assistant", "system", "tool", "document"] | None,
        typer.Option(help="Of the texts, where a row does not say. Default: user; at --stage response assistant."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many rows of each file, drawn by --seed.")
    ] = None,
    resamples: Annotated[
        int, typer.Option(min=0, help="Bootstrap resamples of the intervals; 0: no intervals.")
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Of the sample and the bootstrap.")] = 0,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge a guard by labelled files: precision, recall, specificity, F1, F2, AP, AUC with 95 % intervals, by label
    and language, throughput and latency. Several files are reported one by one and together.

    Rows: {text, label}, {text, spans}, {question, context, response, label}, {question, context, answer_sentence} or
    {question, candidates, right}; docs/evaluation.md says what is computed of each.

    A text that the guard could not look at is a failure: counted, in no figure. Exit code 1 when it could look at
    none. A bad row ends with 2, its file and line.
    """
    from guards.artifacts import Artifacts
    from guards.evaluation import report as reports
    from guards.evaluation.rows import read
    from guards.guard import build
    from guards.models import ModelStore
    from guards.policy import Policy, options_of
    from streams.settings import load_settings

    wanted = tuple(_wanted(text) for text in suggest or ())
    fields = dict(_pair(text) for text in field or ())
    settings = load_settings(profile)
    file = policy or settings.policy_file
    chosen = Policy.default() if file is None else Policy.load(file)
    _known(guard)
    read_files = [read(path, fields=fields, group_by=group_by, limit=limit, seed=seed) for path in files]
    of_profile = {**settings.guards.get(guard, {}), **_json_object(guard_options, "--guard-options")}
    store = ModelStore(guards={guard: of_profile}, encoder=settings.encoder)
    made = build([guard], {guard: of_profile}, store)[guard]
    raw = _json_object(options, "--options") if options is not None else _policy_options(chosen, guard)
    typed = options_of(made.options_type, raw, f"guards.{guard}.options")
    errors: set[str] = set()
    with _progress() as progress:
        report = reports.evaluate(
            made,
            typed,
            read_files,
            reports.Settings(
                threshold=_threshold(chosen, guard) if threshold is None else threshold,
                kinds=frozenset(kind or ()),
                labels=frozenset(label or ()),
                stage=stage,
                role=role,
                resamples=resamples,
                seed=seed,
                wanted=wanted,
            ),
            Artifacts(store.encoder, store.entities),
            progress=progress,
            on_error=lambda error: errors.add(type(error).__name__),
        )
    if as_json:
        print_json(report)
    else:
        _show(report)
    for absent in sorted({*report.kinds} - {*report.kinds_found}):
        say(f"no finding was of the kind {absent!r}; there were {', '.join(report.kinds_found) or 'none'}")
    if report.failures:
        codes = ", ".join(f"{code} {count:,}" for code, count in report.failures_by_code.items())
        raised = f"; it raised {', '.join(sorted(errors))}" if errors else ""
        say(f"{guard} could not look at {report.failures:,} of {report.n:,} rows: {codes}{raised}")
    raise typer.Exit(EXIT_NO if report.failures == report.n else EXIT_OK)


def _known(guard: str) -> None:
    """Raises for a name that no installed guard has, before anything is read or loaded."""
    from guards.guard import available
    from guards.strict import nearest

    if guard not in (known := available()):
        raise typer.BadParameter(f"no guard is called {guard!r}{nearest(guard, known)}")


def _wanted(text: str) -> Any:
    from guards.evaluation.scores import parse_wanted

    try:
        return parse_wanted(text)
    except ValueError as error:
        raise typer.BadParameter(f"--suggest {error}") from error


def _pair(text: str) -> tuple[str, str]:
    ours, equals, theirs = text.partition("=")
    if not (ours and equals and theirs):
        raise typer.BadParameter(f"--field {text!r}: expected OURS=THEIRS, such as text=comment")
    return ours, theirs


def _json_object(text: str | None, option: str) -> dict[str, Any]:
    import msgspec

    if text is None:
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise typer.BadParameter(f"{option}: expected a JSON object: {error}") from error


def _policy_options(policy: Policy, guard: str) -> Mapping[str, Any]:
    settings = policy.guards.get(guard)
    return {} if settings is None else settings.options


def _threshold(policy: Policy, guard: str) -> float:
    """The lowest at which a rule acts on this guard; without a rule, what the policy says of the guard."""
    from guards.policy import GuardSettings

    acting = [policy.threshold(rule) for rule in policy.document.rules if rule.guard == guard]
    return min(acting, default=policy.guards.get(guard, GuardSettings()).threshold)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = err()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("checked", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


# ---------------------------------------------------------------- for people

_NAMES = ("precision", "recall", "specificity", "f1", "f2", "ap", "auc", "mrr", "map", "recall_at_1")
_PLACES = ("char", "span", "span_exact")
_RATES = ("precision", "recall", "f1", "f2")


def _show(report: Report) -> None:
    from rich.text import Text

    from streams.commands.console import out

    kinds = f", kinds {', '.join(report.kinds)}" if report.kinds else ""
    out().print(Text(f"{report.guard} from {report.threshold:g} on{kinds}: {report.n:,} rows"))
    show_table(("", "figure", "95 % interval"), _rows(report))
    if report.files:
        _groups("file", report.files)
    _groups("language", report.by_language)
    _groups("label", report.by_label)
    _groups("kind", report.by_kind)
    if report.ranking:
        print()
        show_table(
            ("candidates of the", "ranked by", "MRR", "MAP", "recall@1"),
            [
                (pool, scorer.replace("_", " "), _number(r.mrr), _number(r.map), _number(r.recall_at_1))
                for pool, scorers in report.ranking.items()
                for scorer, r in scorers.items()
            ],
        )
    if report.suggestions:
        print()
        show_table(
            ("wanted", "threshold", "precision", "recall", "false positives"),
            [
                (
                    s.wanted,
                    "none" if s.threshold is None else f"{s.threshold:g}",
                    *map(_number, (s.precision, s.recall, s.fpr)),
                )
                for s in report.suggestions
            ],
        )


def _rows(report: Report) -> Iterator[tuple[str, str, str]]:
    positives = "pairs that do not fit" if report.mrr is not None else "should be found"
    yield positives, f"{report.positives:,}", ""
    for name in _NAMES:
        if getattr(report, name) is not None:
            yield name.replace("_", " "), _number(getattr(report, name)), _interval(report.intervals.get(name))
    for place in _PLACES:
        rates = getattr(report, place)
        for rate in _RATES if rates is not None else ():
            interval = report.intervals.get(place, {}).get(rate)
            yield f"{place.replace('_', ' ')} {rate}", _number(getattr(rates, rate)), _interval(interval)
    yield "failures", f"{report.failures:,}", ""
    if report.skipped:
        yield "nothing to look at", f"{report.skipped:,}", ""
    if report.texts_per_s is not None:
        yield "texts/s in batches", f"{report.texts_per_s:,.1f}", ""
        yield "one text, p50 / p95", f"{report.p50_ms:,.2f} / {report.p95_ms:,.2f} ms", ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _interval(interval: Any) -> str:
    return "" if interval is None else f"{interval[0]:.3f} – {interval[1]:.3f}"


def _groups(name: str, groups: Mapping[str, Figures | LabelFigures]) -> None:
    """A table with a row per group; columns in which nobody has a figure are left out."""
    if not groups:
        return
    from guards.evaluation.report import LabelFigures

    rows: list[dict[str, str]] = []
    for group, figures in groups.items():
        row = {name: group, "n": f"{figures.n:,}"}
        if not isinstance(figures, LabelFigures):
            row |= {column.replace("_", " "): _number(getattr(figures, column)) for column in _NAMES}
        for place in ("char", "span", "same"):
            rates = getattr(figures, place, None)
            row |= {f"{place} {rate}": _number(rates and getattr(rates, rate)) for rate in _RATES}
        rows.append(row)
    columns = [column for column in rows[0] if any(row.get(column) for row in rows)]
    print()
    show_table(columns, [[row.get(column, "") for column in columns] for row in rows])
