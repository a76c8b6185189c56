"""`tidegate doctor`: is everything here that Tidegate needs, and what to do where it is not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from streams.commands.console import (
    EXIT_NO,
    EXIT_OK,
    JsonOption,
    KafkaOption,
    PortOption,
    ProfileOption,
    RedisOption,
    print_json,
    run,
    show_table,
)

if TYPE_CHECKING:
    from streams.settings import Settings

__all__ = ["doctor"]

_DISTRIBUTIONS = ("tidegate", "faust-streaming", "aiokafka", "redis", "onnxruntime", "spacy", "presidio-analyzer")
_BROKER_TIMEOUT_S = 3.0

Finding = tuple[str, bool, str, str]
"""What was looked at, whether it is well, what was seen, and how to mend it."""


def doctor(
    port: PortOption = None,
    kafka: KafkaOption = None,
    redis: RedisOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look at versions, models, policy, broker, store and sidecar; each line says ok, or how to mend it.

    Exit code 1 when something is not ok.
    """
    from streams.settings import load_settings

    settings = load_settings(profile, kafka={"bootstrap": kafka}, redis={"url": redis})
    findings = [*_versions(), *_models(settings), _policy(settings), _key(settings)]
    findings += run(_reachable(settings, port, profile))
    if as_json:
        print_json([{"check": name, "ok": ok, "seen": seen, "fix": fix} for name, ok, seen, fix in findings])
    else:
        rows = [("ok" if ok else "NOT OK", name, seen, fix) for name, ok, seen, fix in findings]
        show_table(("", "check", "seen", "to do"), rows)
    raise typer.Exit(EXIT_OK if all(ok for _, ok, _, _ in findings) else EXIT_NO)


def _versions() -> Iterator[Finding]:
    import sys
    from importlib.metadata import PackageNotFoundError, version

    python = ".".join(str(part) for part in sys.version_info[:3])
    supported = sys.version_info[:2] == (3, 11)
    yield ("python", supported, python, "" if supported else "install Tidegate under Python 3.11")
    for name in _DISTRIBUTIONS:
        try:
            yield (name, True, version(name), "")
        except PackageNotFoundError:
            yield (name, False, "not installed", "pip install tidegate")


def _models(settings: Settings) -> Iterator[Finding]:
    from guards.models import ModelState

    for model in settings.model_store().verify():
        ready = model.state is ModelState.READY
        yield (f"model {model.name}", ready, f"{model.state} in {model.path}", "" if ready else "tidegate models pull")


def _policy(settings: Settings) -> Finding:
    from guards.errors import ConfigError
    from guards.policy import Policy

    try:
        file = settings.policy_file
        policy = Policy.default() if file is None else Policy.load(file)
    except ConfigError as error:
        return ("policy to begin with", False, str(error), "tidegate policy validate FILE")
    return ("policy to begin with", True, f"{policy.name}, version {policy.version}", "")


def _key(settings: Settings) -> Finding:
    """Where the hash key comes from; never the key."""
    from streams.settings import state_folder

    if settings.hash_key is not None:
        return ("hash key", True, "from TIDEGATE_HASH_KEY or the profile", "")
    path = state_folder() / "hash.key"
    if not path.exists():
        return ("hash key", True, f"will be made at first use: {path}", "")
    private = path.stat().st_mode & 0o077 == 0
    return ("hash key", private, f"from {path}", "" if private else f"others can read it: chmod 600 {path}")


async def _reachable(settings: Settings, port: int | None, profile: str | None) -> list[Finding]:
    import asyncio

    loop = type(asyncio.get_running_loop()).__module__
    uses_uvloop = loop.startswith("uvloop")
    return [
        ("event loop", uses_uvloop, loop, "" if uses_uvloop else "pip install uvloop"),
        await _broker(settings),
        await _store(settings),
        await _sidecar(port, profile),
    ]


async def _broker(settings: Settings) -> Finding:
    from guards.errors import GuardsError
    from streams.kafka import wait_for_broker

    try:
        await wait_for_broker(settings.kafka, _BROKER_TIMEOUT_S)
    except GuardsError as error:
        return ("broker", False, str(error), "tidegate up, or --kafka HOST:PORT")
    return ("broker", True, f"answers at {settings.kafka.bootstrap}", "")


async def _store(settings: Settings) -> Finding:
    from guards.errors import GuardsError
    from streams.store import Store

    store = Store(settings.redis)
    try:
        await store.connect()
    except GuardsError as error:
        return ("store", False, str(error), "tidegate up, or --redis URL")
    finally:
        await store.close()
    return ("store", True, f"answers at {store.address}", "")


async def _sidecar(port: int | None, profile: str | None) -> Finding:
    from guards.errors import GuardsError
    from streams.commands.sidecar_api import base_url, get_json

    url = base_url(port, profile)
    try:
        info = await get_json(url, "/v1/info")
    except GuardsError as error:
        return ("sidecar", False, str(error), "tidegate up, tidegate sidecar, or --port")
    policy = info.get("policy") or {}
    seen = f"{url}: mode {info.get('mode')}, policy {policy.get('name')} version {policy.get('version')}"
    return ("sidecar", True, seen, "")
