"""Strict configuration: YAML without surprises, and faults told with their key path and the nearest right name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from guards.errors import PolicyError

__all__ = ["load_yaml", "nearest", "problems_of"]


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key written twice (the second would silently win) and aliases (they can explode)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: the key {key!r} is written twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_yaml(text: str, source: str) -> Any:
    """Parse YAML: safe tags only, no duplicate keys, no aliases. Raises `PolicyError` naming ``source``."""
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise PolicyError(source, [f"not valid YAML: {' '.join(str(error).split())}"]) from error


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or the list of what is known; empty if nothing is."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(known)}" if known else ""


def problems_of(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """pydantic's error → one line per fault, ``key.path: what is wrong``."""
    problems = []
    for item in error.errors(include_url=False):
        loc = item["loc"]
        path, _ = _walk(loc, root)
        if item["type"] == "extra_forbidden":
            _, parent = _walk(loc[:-1], root)
            problems.append(f"{path}: unknown key{nearest(str(loc[-1]), parent.model_fields if parent else ())}")
        elif item["type"] == "missing":
            problems.append(f"{path}: missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            problems.append(f"{path}: {message[0].lower()}{message[1:]}" if path else message)
    return list(dict.fromkeys(problems))


def _walk(loc: Sequence[int | str], root: type[BaseModel]) -> tuple[str, type[BaseModel] | None]:
    """The readable key path (pydantic's names of union members left out), and the model that stands there."""
    model: type[BaseModel] | None = root
    keys: list[str] = []
    inside: Any = None  # the annotation of a field that is a container: its keys are the user's own
    for part in loc:
        text = str(part)
        if model is not None and text in model.model_fields:
            annotation = model.model_fields[text].annotation
            nested = _model_in(annotation)
            direct = isinstance(annotation, type) and issubclass(annotation, BaseModel)
            inside = None if direct else annotation
            keys.append(text)
            model = nested if direct else None
        elif inside is not None and (isinstance(part, int) or not _is_union_member(text)):
            keys.append(text)
            model = _model_in(inside)
        elif not _is_union_member(text):
            keys.append(text)
    return ".".join(keys), model


def _is_union_member(text: str) -> bool:
    return text in {"str", "int", "float", "bool"} or "[" in text


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _model_in(argument)
        if found is not None:
            return found
    return None
