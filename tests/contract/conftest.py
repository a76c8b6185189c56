"""Every guard that is installed, made once per session as the engine makes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest

from guards.artifacts import Artifacts
from guards.errors import ModelMissingError
from guards.guard import Guard, available, build
from guards.models import ModelStore
from guards.outside import Budget, Reply

SLOW_OPTIONS: dict[str, dict[str, Any]] = {
    "judge": {
        "endpoint": "https://judge.example/v1",
        "model": "m",
        "criteria": [{"name": "harm", "description": "It could hurt somebody."}],
    },
    "webhook": {"url": "https://hook.example/check", "kinds": ["odd"]},
}
"""What slow guards cannot do without."""


class Services:
    """The way to services that are well: the judge sees some risk, the webhook one finding."""

    def post(self, url: str, body: bytes, headers: Mapping[str, str], **_: Any) -> Reply:
        json.loads(body)
        if "judge" in url:
            answer: Any = {"choices": [{"message": {"content": '{"harm": 0.25}'}, "finish_reason": "stop"}]}
        else:
            answer = {"findings": [{"kind": "odd", "score": 0.5, "spans": [{"start": 0, "end": 0}]}]}
        return Reply(200, json.dumps(answer).encode())

    def spend(self, guard: str, budget: Budget) -> bool:
        return True

    def pause(self, seconds: float) -> None:
        raise AssertionError("a service that is well needs no second try")


@pytest.fixture(scope="session")
def store() -> ModelStore:
    return ModelStore()


@pytest.fixture(scope="session")
def artifacts(store: ModelStore) -> Artifacts:
    return Artifacts(store.encoder, store.entities, outside=Services())


@pytest.fixture(scope="session")
def guard_named(store: ModelStore) -> Callable[[str], Guard]:
    made: dict[str, Guard] = {}

    def get(name: str) -> Guard:
        if name not in made:
            try:
                made.update(build([name], {}, store))
            except ModelMissingError as error:
                pytest.skip(f"{name}: {error}")
        return made[name]

    return get


@pytest.fixture(params=sorted(available()))
def guard(request: pytest.FixtureRequest, guard_named: Callable[[str], Guard]) -> Guard:
    return guard_named(request.param)


@pytest.fixture
def options(guard: Guard) -> Any:
    """The guard's options as they are when a policy sets none but the required ones."""
    return msgspec.convert(SLOW_OPTIONS.get(guard.name, {}), guard.options_type)
