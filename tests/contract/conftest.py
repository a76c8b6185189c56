"""Every guard that is installed, made once per session as the engine makes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from guards.artifacts import Artifacts
from guards.errors import ModelMissingError
from guards.guard import Guard, available, build
from guards.models import ModelStore
from guards.outside import Budget, Reply
from guards.policy import options_of


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


# Options for guards that look for nothing until a policy says what for, and for those that cannot do without.
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "code": {"require": True},
    "limits": {"request": {"max_chars": 40}, "response": {"min_chars": 5, "max_tokens": 20}},
    "json_schema": {"schema": {"required": ["to"]}},
    "tool_calls": {"allowed": ["look*"], "argument_schemas": {"lookup": {"required": ["to"]}}},
    "regex": {"patterns": [{"name": "word", "pattern": r"\w+"}, {"name": "no_end", "pattern": "$x", "required": True}]},
    "topics": {"topics": [{"name": "money", "description": "Bills and payments.", "examples": ["Pay the invoice."]}]},
    "judge": {
        "endpoint": "https://judge.example/v1",
        "model": "m",
        "criteria": [{"name": "harm", "description": "It could hurt somebody."}],
    },
    "webhook": {"url": "https://hook.example/check", "kinds": ["odd"]},
    "terms": {"lists": [{"name": "words", "terms": ["invoice", "Köln", "idiot"]}]},
}


@pytest.fixture
def options(guard: Guard) -> Any:
    """The guard's options as they are when a policy sets none, or those under which it has something to do."""
    return options_of(guard.options_type, OPTIONS.get(guard.name, {}), f"guards.{guard.name}.options")
