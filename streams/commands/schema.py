"""`tidegate schema`: the JSON Schemas of what travels over the topics, and the AsyncAPI document."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streams.commands.console import EXIT_NO, EXIT_OK, say

__all__ = ["schema"]


def schema(
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where the schemas go; asyncapi.yaml goes beside that folder.")
    ] = Path("docs/schema"),
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit code 1 when a file is stale.")] = False,
) -> None:
    """Write a JSON Schema per event and record type, and an AsyncAPI 3.0 document of all topics.

    A producer in any language can validate against them. They are generated from the types and checked in.
    """
    from streams.schema import all_documents, write_or_check

    raise typer.Exit(EXIT_OK if write_or_check(all_documents(out), check=check, say=say) else EXIT_NO)
