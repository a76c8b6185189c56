"""`tidegate up`: everything on one machine, with a broker and a store of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streams.commands.console import ProfileOption, run

__all__ = ["up"]

_RUN_ON = "Existing services"


def up(
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="The sidecar's port. Default: the profile's, 8088.")
    ] = None,
    demo: Annotated[bool, typer.Option("--demo/--no-demo", help="Publish made-up traffic to look at.")] = True,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy", "--policy-file", metavar="FILE", help="The policy to begin with. Default: the stock one."
        ),
    ] = None,
    profile: ProfileOption = None,
    kafka: Annotated[
        str | None,
        typer.Option(
            "--kafka",
            metavar="HOST:PORT",
            envvar="TIDEGATE_KAFKA__BOOTSTRAP",
            help="Use this broker, not an embedded one.",
            rich_help_panel=_RUN_ON,
        ),
    ] = None,
    redis: Annotated[
        str | None,
        typer.Option(
            "--redis",
            metavar="URL",
            envvar="TIDEGATE_REDIS__URL",
            help="Use this store, not an embedded one.",
            rich_help_panel=_RUN_ON,
        ),
    ] = None,
    broker_port: Annotated[
        int, typer.Option(min=0, max=65535, help="The embedded broker's port. 0: 9092, or a free one if that is taken.")
    ] = 0,
    store_port: Annotated[
        int, typer.Option(min=0, max=65535, help="The embedded store's port. 0: 6379, or a free one if that is taken.")
    ] = 0,
    json: Annotated[bool, typer.Option("--json", help="One line of JSON on stdout when ready; no panel.")] = False,
) -> None:
    """Run everything on this machine: broker, store, checks worker, monitor, sidecar and some demo traffic.

    Broker and store are in memory only: what they hold is forgotten at the end. Ctrl-C (or SIGTERM) stops all of it
    within ten seconds, and that is a success (exit code 0); a second Ctrl-C does not wait. A process that ends is
    started again. A second `tidegate up --port 8090` can run beside the first.
    """
    import setproctitle

    setproctitle.setproctitle("tidegate up")
    from streams.dev.up import UpOptions, make_ready, run_up

    options = UpOptions(
        port=port,
        demo=demo,
        policy=policy,
        profile=profile,
        kafka=kafka,
        redis=redis,
        broker_port=broker_port,
        store_port=store_port,
        json=json,
    )
    try:
        plan = make_ready(options)
        raise typer.Exit(run(run_up(plan)))
    except KeyboardInterrupt:  # before the processes were started: there is nothing to stop
        raise typer.Exit(0) from None
