"""What all commands share: options, output (data to stdout, messages to stderr), exceptions as exit codes."""

from __future__ import annotations

import errno
import sys
from collections.abc import Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "EXIT_INTERRUPTED",
    "EXIT_NO",
    "EXIT_OK",
    "EXIT_UNREACHABLE",
    "EXIT_USAGE",
    "Group",
    "JsonOption",
    "KafkaOption",
    "PolicyFileOption",
    "PortOption",
    "ProfileOption",
    "RedisOption",
    "err",
    "examples",
    "out",
    "print_json",
    "run",
    "say",
    "show_table",
    "sub_app",
]

EXIT_OK: Final = 0
EXIT_NO: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 3
EXIT_INTERRUPTED: Final = 130

_EXIT_CODES: Final = (
    "[bold]Exit codes[/bold]: 0 ok · 1 what was asked about is not so · 2 bad usage or configuration · "
    "3 cannot reach or bind (broker, store, sidecar, port) · 130 interrupted"
)
_UNREACHABLE_ERRNOS: Final = {errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.ECONNREFUSED, errno.EACCES}

ProfileOption = Annotated[
    str | None,
    typer.Option("--profile", metavar="NAME|PATH", help="A profile of configs/, or a file. Default: embedded."),
]
KafkaOption = Annotated[
    str | None, typer.Option("--kafka", metavar="HOST:PORT", help="The broker. Default: the profile's.")
]
RedisOption = Annotated[str | None, typer.Option("--redis", metavar="URL", help="The store. Default: the profile's.")]
PolicyFileOption = Annotated[
    str | None,
    typer.Option("--policy-file", metavar="FILE", help="The policy to begin with, where the broker has none yet."),
]
PortOption = Annotated[
    int | None,
    typer.Option("--port", min=1, max=65535, help="The sidecar's port on this machine. Default: the profile's, 8088."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, for scripts.")]

T = TypeVar("T")


def examples(*lines: str) -> str:
    """A command's epilog: examples, then the exit codes."""
    shown = "\n\n".join(f"  [cyan]{line}[/cyan]" for line in lines)
    return f"[bold]Examples[/bold]\n\n{shown}\n\n{_EXIT_CODES}"


def sub_app(help_text: str) -> typer.Typer:
    """A group of commands below `tidegate`."""
    return typer.Typer(help=help_text, no_args_is_help=True, rich_markup_mode="rich", epilog=_EXIT_CODES)


class Group(TyperGroup):
    """The root group: an error that is meant for the user goes to stderr, without a traceback, with its exit code."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _unwrap(self)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.errno not in _UNREACHABLE_ERRNOS:
                raise
            say(f"cannot reach or bind: {error.strerror or error}")
            raise typer.Exit(EXIT_UNREACHABLE) from error
        except Exception as error:
            code = _exit_code(error)
            if code is None:
                raise
            for line in str(error).splitlines() or [type(error).__name__]:
                say(line)
            raise typer.Exit(code) from error


def _unwrap(command: Any) -> None:
    """Let the paragraphs of all help texts flow: Typer would keep the line breaks of the docstrings."""
    if command.help:
        command.help = "\n\n".join(" ".join(part.split()) for part in command.help.split("\n\n"))
    for below in getattr(command, "commands", {}).values():
        _unwrap(below)


def _exit_code(error: Exception) -> int | None:
    """The exit code of an exception for the user; ``None``: a fault of ours, whose traceback is wanted."""
    from guards.errors import ConfigError, GuardsError, ModelBuildError, ModelMissingError

    if isinstance(error, (ConfigError, ModelMissingError)):
        return EXIT_USAGE
    if isinstance(error, ModelBuildError):
        return EXIT_NO
    if isinstance(error, GuardsError):
        return EXIT_UNREACHABLE
    kafka = sys.modules.get("aiokafka.errors")
    if kafka is not None and isinstance(error, kafka.KafkaError):
        return EXIT_UNREACHABLE
    return None


def say(message: str) -> None:
    """One message to stderr."""
    print(f"tidegate: {message}", file=sys.stderr, flush=True)


def out() -> Console:
    """A Rich console on stdout; wide enough for a pipe to keep tables on one line."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=160)


def err() -> Console:
    """A Rich console on stderr."""
    from rich.console import Console

    return Console(stderr=True)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout. Cells are shown as they are: no markup is read out of them."""
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    out().print(table)


def print_json(value: Any) -> None:
    """One JSON document (of plain values, msgspec structs or dataclasses) on stdout, indented."""
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode(), flush=True)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on uvloop."""
    import asyncio
    import logging

    import uvloop

    # A command tells in its own words that nobody answers; a process that configures logs hears aiokafka all the same.
    logging.getLogger("aiokafka").addHandler(logging.NullHandler())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
