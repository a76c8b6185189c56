"""`tidegate topics`: create the topics, or list them with what they are for."""

from __future__ import annotations

from typing import Annotated

import typer

from streams.commands.console import (
    JsonOption,
    KafkaOption,
    ProfileOption,
    examples,
    print_json,
    run,
    show_table,
    sub_app,
)

__all__ = ["app"]

app = sub_app("Create and list the topics.")


@app.command(epilog=examples("tidegate topics create", "tidegate topics create --kafka broker:9092 --replication 3"))
def create(
    kafka: KafkaOption = None,
    partitions: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Of new topics; at least as many as workers. Default: 8.")
    ] = None,
    replication: Annotated[int | None, typer.Option(min=1, max=9, help="Of new topics. Default: 1.")] = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create the topics that are missing. Idempotent: a topic that exists is left as it is."""
    from streams.kafka import create_topics
    from streams.settings import load_settings

    section = {"bootstrap": kafka, "partitions": partitions, "replication": replication}
    outcome = run(create_topics(load_settings(profile, kafka=section).kafka))
    if as_json:
        print_json(outcome)
    else:
        for name, state in outcome.items():
            print(f"{name:<16}{state}")


@app.command("list", epilog=examples("tidegate topics list", "tidegate topics list --json"))
def list_topics(kafka: KafkaOption = None, profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """List Tidegate's topics: key, content, cleanup, and how many partitions the broker has (0: missing).

    Exit code 1 when one is missing.
    """
    from streams.broker_state import partition_counts
    from streams.settings import load_settings
    from streams.topics import TOPICS

    found = run(partition_counts(load_settings(profile, kafka={"bootstrap": kafka}).kafka))
    rows = [
        {
            "name": topic.name,
            "partitions": found.get(topic.name, 0),
            "key": topic.key,
            "cleanup": topic.cleanup,
            "what": topic.what,
        }
        for topic in TOPICS
    ]
    if as_json:
        print_json(rows)
    else:
        show_table(("topic", "partitions", "key", "cleanup", "what"), [tuple(row.values()) for row in rows])
    raise typer.Exit(0 if all(row["partitions"] for row in rows) else 1)
