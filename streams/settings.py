"""Typed settings: defaults, then a profile file (configs/<profile>.yaml), then environment (TIDEGATE_…), then options.

Nested names use two underscores in the environment: ``TIDEGATE_KAFKA__BOOTSTRAP=broker:9092``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from guards.errors import ConfigError, PolicyError
from guards.models import ModelStore
from guards.policy import configs_folder
from guards.strict import load_yaml, problems_of

__all__ = ["KafkaSettings", "Mode", "RedisSettings", "Settings", "load_settings", "state_folder"]

Mode = Literal["local", "stream", "hybrid"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class KafkaSettings(_Section):
    """The broker. ``fetch_max_wait_ms``: on Tansu an idle fetch is answered after half of it, not when data arrives."""

    bootstrap: str = Field("127.0.0.1:9092", description="HOST:PORT[,HOST:PORT…]")
    partitions: int = Field(8, ge=1, le=1024, description="Partitions of new topics; at least as many as workers.")
    replication: int = Field(1, ge=1, le=9)
    fetch_max_wait_ms: int = Field(20, ge=1, le=1500)
    idempotence: bool = Field(False, description="Idempotent producers; Apache Kafka has them, Tansu has not.")
    request_timeout_ms: int = Field(20_000, ge=1000, description="A publish without an answer for so long has failed.")
    session_timeout_ms: int = Field(10_000, ge=1000, description="A dead worker's partitions move after this.")
    heartbeat_interval_ms: int = Field(3_000, ge=100)
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_cafile: Path | None = None


class RedisSettings(_Section):
    """The store: Redis 7 or later, or Valkey."""

    url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    timeout_ms: int = Field(2_000, ge=10, description="One command; then it has failed.")


class ChecksSettings(_Section):
    """The checks worker."""

    batch_max: int = Field(64, ge=1, le=1000, description="Events checked together.")
    batch_within_s: float = Field(0.02, gt=0, le=5)
    join_wait_ms: int = Field(10_000, ge=0, description="How long a response waits for its request to be consumed.")
    parked_max: int = Field(2_000, ge=1, description="Responses that wait at once; beyond it consumption waits.")
    request_ttl_s: int = Field(900, ge=1, description="How long a request can be joined.")
    decision_ttl_s: int = Field(600, ge=1, description="How long a decision can be read from Redis.")
    dead_letter_limit_per_min: int = Field(
        6_000, ge=1, description="More dead letters than this a minute stop the worker: something else is wrong."
    )


class SlowSettings(_Section):
    """The slow worker; how it joins and how long it keeps requests stands under ``checks``."""

    concurrency: int = Field(8, ge=1, le=256, description="Exchanges that slow guards look at at once, per process.")
    max_age_s: int = Field(86_400, ge=1, description="Older events are passed over: a first start, a long absence.")
    amendment_ttl_s: int = Field(86_400, ge=60, description="A redelivery within this finds what was said before.")
    replays: bool = Field(False, description="Look at replayed events too: it costs calls, and services hear of them.")


class MonitorSettings(_Section):
    """The monitor worker."""

    batch_max: int = Field(500, ge=1, le=5000)
    batch_within_s: float = Field(0.1, gt=0, le=5)
    flush_s: float = Field(1.0, gt=0, le=60, description="Window state is written and metrics are emitted this often.")
    bucket_s: int = Field(5, ge=1, le=60, description="Width of a bucket; the 1 m window moves in such steps.")
    allowed_lateness_s: int = Field(60, ge=0, description="An event older than the watermark by more is late.")
    idle_partition_s: float = Field(5.0, gt=0, description="A partition without events does not hold the watermark.")
    retention_s: int = Field(7_200, ge=3_600, description="Buckets are kept this long: the longest horizon and a rest.")
    max_series: int = Field(10_000, ge=1, description="Beyond it everything goes to one overflow series.")
    dedup_horizon_s: int = Field(86_400, ge=60, description="An event that comes again within this counts once.")
    notify_max_age_s: int = Field(300, ge=1, description="While events are older than this, nothing is notified.")
    lease_s: float = Field(5.0, gt=0, description="The evaluator's lease; another takes over after it.")


class SidecarSettings(_Section):
    """The sidecar."""

    host: str = "127.0.0.1"
    port: int = Field(8088, ge=0, le=65535)
    mode: Mode = "hybrid"
    deadline_ms: int = Field(2_000, ge=1, description="Every answer comes by then.")
    max_body_bytes: int = Field(1_048_576, ge=1024)
    max_inflight: int = Field(64, ge=1, description="Requests checked or waiting at once; beyond it 503, at once.")
    threads: int = Field(2, ge=1, le=64, description="Threads that run guards.")
    publish_queue_max: int = Field(
        10_000, ge=1, description="Events that wait to be published; beyond it they are dropped."
    )


class Settings(BaseSettings):
    """Everything that a process of Tidegate can be told."""

    model_config = SettingsConfigDict(env_prefix="TIDEGATE_", env_nested_delimiter="__", extra="forbid")

    profile: str = "embedded"
    policy: str = Field("default", description="Name of the policy in force, in the topic llm.policy.")
    policy_file: Path | None = Field(None, description="Published when llm.policy has none of that name.")
    hash_key: SecretStr | None = Field(None, description="Master key of keyed hashes; shared by all processes.")
    store_key: SecretStr | None = Field(None, description="Encrypts joined requests in Redis (base64, 32 bytes).")
    status_host: str = "127.0.0.1"
    status_port: int = Field(0, ge=0, le=65535, description="A worker's /live, /ready, /metrics; 0 takes a free port.")
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    guards: dict[str, dict[str, Any]] = Field(default_factory=dict, description="The profile's options by guard.")
    encoder: dict[str, Any] = Field(default_factory=dict, description="The shared encoder: `precision`, `model`.")
    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    redis: RedisSettings = Field(default_factory=RedisSettings)
    checks: ChecksSettings = Field(default_factory=ChecksSettings)
    slow: SlowSettings = Field(default_factory=SlowSettings)
    monitor: MonitorSettings = Field(default_factory=MonitorSettings)
    sidecar: SidecarSettings = Field(default_factory=SidecarSettings)

    def model_store(self) -> ModelStore:
        """The models that this profile names."""
        return ModelStore(guards=self.guards, encoder=self.encoder)

    def master_key(self) -> bytes:
        """The hash key: from the settings, else from the state folder's file, made at first use (mode 0600).

        Processes on several machines must be given the same key; they compare key ids through Redis at start.
        """
        if self.hash_key is not None:
            return self.hash_key.get_secret_value().encode()
        path = state_folder() / "hash.key"
        if not path.exists():
            # Written whole under another name, then linked: a process that comes second finds all of it.
            with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix="hash.key.") as file:
                file.write(secrets.token_hex(32))
                file.flush()
                with contextlib.suppress(FileExistsError):
                    os.link(file.name, path)
        return path.read_text().strip().encode()


def state_folder() -> Path:
    """Where Tidegate keeps what is its own on this machine: TIDEGATE_STATE, else ``~/.local/state/tidegate``."""
    base = os.environ.get("TIDEGATE_STATE")
    folder = (
        Path(base) if base else Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "tidegate"
    )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def load_settings(profile: str | Path | None = None, **options: Any) -> Settings:
    """Settings of a profile: a name (configs/<name>.yaml) or a path. ``options`` (nested dicts) win over everything.

    Raises `ConfigError`, one line per fault, each with its key path and the nearest right name.
    """
    wanted = str(profile or os.environ.get("TIDEGATE_PROFILE") or "embedded")
    path = Path(wanted) if wanted.endswith((".yaml", ".yml")) else configs_folder() / f"{wanted}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in configs_folder().glob("*.yaml") if p.stem not in {"prices", "alerts"}))
        raise ConfigError(f"no profile {wanted!r} ({path} is missing); known are {known}, or give a path")
    data = load_yaml(path.read_text(encoding="utf-8"), str(path)) or {}
    if not isinstance(data, dict):
        raise PolicyError(str(path), ["expected a mapping"])

    class Layered(Settings):
        @classmethod
        def settings_customise_sources(  # type: ignore[override]
            cls, settings_cls: type[BaseSettings], **sources: PydanticBaseSettingsSource
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            file = InitSettingsSource(settings_cls, {"profile": path.stem, **data})
            return (sources["init_settings"], sources["env_settings"], file)

    try:
        return Layered(**_without_none(options))
    except ValidationError as error:
        raise PolicyError(f"settings ({path}, TIDEGATE_… or an option)", problems_of(error, Settings)) from error


def _without_none(options: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in options.items()
        if value is not None
    }
