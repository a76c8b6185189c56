"""`tidegate worker checks`, `… slow`, `… monitor`, `tidegate sidecar`: the processes that run on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from streams.commands.console import (
    KafkaOption,
    PolicyFileOption,
    ProfileOption,
    RedisOption,
    examples,
    run,
    sub_app,
)

if TYPE_CHECKING:
    from streams.settings import Settings

__all__ = ["sidecar", "worker"]

StatusPortOption = Annotated[
    int | None,
    typer.Option("--status-port", min=0, max=65535, help="Port of /live, /ready and /metrics; 0 takes a free one."),
]
HostOption = Annotated[str | None, typer.Option("--host", help="Address to listen on. Default: 127.0.0.1.")]

worker = sub_app(
    "Run a stream processor: [bold]checks[/bold] decides, [bold]slow[/bold] asks judges and webhooks and amends, "
    "[bold]monitor[/bold] keeps windows and alerts."
)


@worker.command(
    epilog=examples(
        "tidegate worker checks",
        "tidegate worker checks --kafka broker:9092 --redis redis://store:6379/0 --profile standard",
    )
)
def checks(
    kafka: KafkaOption = None,
    redis: RedisOption = None,
    profile: ProfileOption = None,
    policy_file: PolicyFileOption = None,
    status_port: StatusPortOption = None,
    host: HostOption = None,
) -> None:
    """Check requests and responses, publish decisions. Run as many as there are cores; they share the partitions.

    Stops on SIGTERM or Ctrl-C after what is in flight was published and acknowledged.
    """
    _title("worker checks")
    settings = _settings(kafka, redis, profile, policy_file, status_port=status_port, status_host=host)
    from streams.worker.checks import run_checks

    raise typer.Exit(run(run_checks(settings)))


@worker.command(epilog=examples("tidegate worker slow", "OPENAI_API_KEY=… tidegate worker slow --policy-file p.yaml"))
def slow(
    kafka: KafkaOption = None,
    redis: RedisOption = None,
    profile: ProfileOption = None,
    policy_file: PolicyFileOption = None,
    status_port: StatusPortOption = None,
    host: HostOption = None,
) -> None:
    """Run the policy's slow guards (judge, webhook) behind the checks, publish amendments of decisions.

    Needed only where a policy names such guards; without them it passes events over. The environment variables that
    the policy names must be set here. Stops on SIGTERM or Ctrl-C; what was not answered by then is asked again.
    """
    _title("worker slow")
    settings = _settings(kafka, redis, profile, policy_file, status_port=status_port, status_host=host)
    from streams.worker.slow import run_slow

    raise typer.Exit(run(run_slow(settings)))


@worker.command(epilog=examples("tidegate worker monitor", "tidegate worker monitor --status-port 9101"))
def monitor(
    kafka: KafkaOption = None,
    redis: RedisOption = None,
    profile: ProfileOption = None,
    policy_file: PolicyFileOption = None,
    status_port: StatusPortOption = None,
    host: HostOption = None,
) -> None:
    """Keep rolling windows over requests, responses and decisions; publish metrics and alerts.

    Stops on SIGTERM or Ctrl-C after the state was written.
    """
    _title("worker monitor")
    settings = _settings(kafka, redis, profile, policy_file, status_port=status_port, status_host=host)
    from streams.worker.monitor import run_monitor

    raise typer.Exit(run(run_monitor(settings)))


def sidecar(
    kafka: KafkaOption = None,
    redis: RedisOption = None,
    profile: ProfileOption = None,
    policy_file: PolicyFileOption = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Port to listen on. Default: the profile's, 8088.")
    ] = None,
    host: HostOption = None,
    mode: Annotated[
        Literal["local", "stream", "hybrid"] | None,
        typer.Option(help="Where guards run: here, in the workers, or both (default)."),
    ] = None,
) -> None:
    """Run the sidecar: may this pass? Answers over HTTP by its deadline, with the policy in force.

    Stops on SIGTERM or Ctrl-C after open requests were answered.
    """
    _title("sidecar")
    section = {"port": port, "host": host, "mode": mode}
    settings = _settings(kafka, redis, profile, policy_file, sidecar=section)
    from streams.gateway.app import run_sidecar

    raise typer.Exit(run(run_sidecar(settings)))


def _title(name: str) -> None:
    import setproctitle

    setproctitle.setproctitle(f"tidegate {name}")


def _settings(
    kafka: str | None, redis: str | None, profile: str | None, policy_file: str | None, **options: Any
) -> Settings:
    from guards.policy import Policy
    from streams.settings import load_settings

    settings = load_settings(
        profile, kafka={"bootstrap": kafka}, redis={"url": redis}, policy_file=policy_file, **options
    )
    if settings.policy_file is not None:
        name = Policy.load(settings.policy_file).name  # a fault in the file ends here, with its key path
        if "policy" not in settings.model_fields_set:
            settings = settings.model_copy(update={"policy": name})
    return settings
