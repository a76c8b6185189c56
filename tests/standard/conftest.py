"""A store of the test session's own: models are fetched from a hub on this machine and built with torch, once."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from guards.artifacts import Artifacts
from guards.guard import Guard, Result, build
from guards.models import ModelStore
from guards.types import Exchange, Text, Unit
from tests.hub import Hub

pytest.importorskip("torch", reason="torch is not installed: pip install 'tidegate[standard]'")

Pulled = Callable[..., ModelStore]
GuardOf = Callable[[str, dict[str, Any]], Guard]


@pytest.fixture(scope="session")
def hub() -> Iterator[Hub]:
    with Hub().serving() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.address)
        patch.delenv("HF_TOKEN", raising=False)
        yield hub


@pytest.fixture(scope="session")
def bundled(model_store: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model root with the bundled encoder in it, so that nothing is fetched from a package index."""
    root = tmp_path_factory.mktemp("models")
    (root / "all-minilm-l6-v2").symlink_to(model_store.root / "all-minilm-l6-v2")
    return root


@pytest.fixture
def offline() -> Iterator[None]:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("something wants the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield


def pins(folder: Path, *names: str) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def ask(guard: Guard, *texts: str, role: str = "user") -> list[Result]:
    units = [Unit((Text(text, role),), Exchange(), "request") for text in texts]
    return list(guard.check(units, guard.options_type(), Artifacts(None, None)))


def made(name: str, options: dict[str, Any], store: ModelStore) -> Guard:
    return build([name], {name: options}, store)[name]
