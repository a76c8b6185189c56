"""A classifier's labels as a guard's kinds, and its scores as hits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from guards.errors import ConfigError
from guards.strict import nearest
from guards.types import Hit

if TYPE_CHECKING:
    from guards.models.transformer import Classifier, Scored

__all__ = ["column_of", "columns_of", "hits_of"]


def columns_of(classifier: Classifier, labels: Mapping[str, str], path: str) -> dict[str, tuple[int, ...]]:
    """Kind → the columns of its labels; without ``labels`` every label is a kind. Raises `ConfigError`."""
    names = dict(labels) or {label: label for label in classifier.labels}
    columns: dict[str, tuple[int, ...]] = {}
    for label, kind in names.items():
        if label not in classifier.labels:
            raise ConfigError(f"{path}.labels.{label}: the model has no such label{nearest(label, classifier.labels)}")
        columns[kind] = (*columns.get(kind, ()), classifier.labels.index(label))
    return columns


def column_of(classifier: Classifier, kind: str, labels: Mapping[str, str], path: str) -> int:
    """The one column of a kind: by ``labels``, else by the model's own name for it, whatever its case."""
    own = {label: kind for label in classifier.labels if label.casefold() == kind.casefold()}
    found = columns_of(classifier, {k: v for k, v in labels.items() if v == kind} or own, path)
    if not own and kind not in found:
        raise ConfigError(
            f"{path}.labels: which of the model's labels is {kind}? It has {', '.join(classifier.labels)}; say for "
            f"example `labels: {{{classifier.labels[0]}: {kind}}}`"
        )
    return found[kind][0]


def hits_of(scored: Scored, columns: Mapping[str, tuple[int, ...]]) -> tuple[Hit, ...]:
    """One hit per kind: the worst window, its highest label of that kind, and its place."""
    hits: list[Hit] = []
    for kind, indices in columns.items():
        risks = scored.risks[:, list(indices)].max(axis=1)
        worst = int(risks.argmax())
        where = scored.ranges[worst]
        hits.append(Hit(kind, round(float(risks[worst]), 3), (where,) if where.end > where.start else ()))
    return tuple(hits)
