"""The Guard protocol and the registry.

A guard is one object in one file. It is made once per process by its factory (an entry point in the group
``tidegate.guards``, called with the profile's options for it and the `ModelStore`), and then only reads: `check` may be
called from several threads at once.

A *slow guard* is a guard that asks a service and may take seconds. It is the same kind of object, under the group
``tidegate.slow_guards``, and asks through `Artifacts.outside`. Only `tidegate worker slow` runs it; all other processes
make it too, to know at once whether the policy's options are right and to say that it is pending, so its factory must
neither load nor connect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import msgspec

from guards.errors import ConfigError
from guards.types import Failure, Hit, Stage, Unit

if TYPE_CHECKING:
    from guards.artifacts import Artifacts
    from guards.models import ModelStore

__all__ = [
    "GROUP",
    "MAX_CHARS",
    "SLOW_GROUP",
    "Guard",
    "GuardFactory",
    "Needs",
    "NoOptions",
    "Result",
    "available",
    "build",
    "slow_names",
]

MAX_CHARS: Final = 131_072
"""A longer text is refused: ``Failure(INPUT_TOO_LARGE)``. What a guard may take of time and memory is bounded by it."""

GROUP = "tidegate.guards"
SLOW_GROUP = "tidegate.slow_guards"

Result = Sequence[Hit] | Failure
"""What a guard says of one unit: its hits (none is a clean result), or that it could not look."""


class NoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For a guard that a policy cannot tune beyond thresholds."""


class Needs(msgspec.Struct, frozen=True):
    """Strings whose shared artifacts a guard wants ready before `Guard.check` runs; each is computed once per text.

    ``embed``: sentence embeddings (`Artifacts.embedding`); ``parse``: named entities (`Artifacts.entities`).
    """

    embed: tuple[str, ...] = ()
    parse: tuple[str, ...] = ()


class Guard(Protocol):
    """A detector: texts in, hits out."""

    @property
    def name(self) -> str:
        """The guard's name in policies, findings and metrics."""

    @property
    def version(self) -> str:
        """Code and model version: a part of the verdict cache's key, so a change of either must change it."""

    @property
    def stages(self) -> frozenset[Stage]:
        """Stages at which the guard can look at all; the policy may narrow them."""

    @property
    def unit(self) -> Literal["text", "exchange"]:
        """``text``: judged text by text and cached by text. ``exchange``: sees the whole exchange."""

    @property
    def options_type(self) -> type[msgspec.Struct]:
        """What a policy may set under ``guards.<name>.options``: a frozen, hashable struct with defaults for all,
        declared with ``forbid_unknown_fields=True``; with ``cache_hash=True`` where it may grow large. A slow guard may
        require some: nobody can guess an address."""

    def applies(self, unit: Unit, options: Any) -> bool:
        """Whether there is something to look at; where it is false for all units, the guard stands under ``skipped``.

        Cheap and pure. For a per-text guard it may depend on the text, its role and the stage only. A per-exchange
        guard that needs a request which is missing says true here and fails in `check`. A guard that looks for nothing
        until a policy says what for says false under its default options: what is not looked for is not scanned.
        """

    def needs(self, unit: Unit, options: Any) -> Needs:
        """The artifacts that `check` will read for this unit. Cheap, pure."""

    def check(self, units: Sequence[Unit], options: Any, artifacts: Artifacts) -> Sequence[Result]:
        """One result per unit, in order.

        Shapes: ``len(result) == len(units)``. Must not raise for one bad unit (it returns a `Failure`); if it raises
        all the same, the engine asks unit by unit and turns each exception into ``Failure(ERROR)``. Only units for
        which `applies` was true come in.
        """


GuardFactory = Callable[[Mapping[str, Any], "ModelStore"], Guard]
"""Called with the profile's options (``guards.<name>`` in configs/<profile>.yaml) and the store; loads the model.

Raises `ModelMissingError` when a model is not in the store, `ConfigError` for a bad option.
"""


def available(*groups: str) -> dict[str, EntryPoint]:
    """Name → entry point of every guard that is installed, third parties' included. Without ``groups``: of both.

    Raises `ConfigError` if two packages offer one name.
    """
    found: dict[str, EntryPoint] = {}
    for group in groups or (GROUP, SLOW_GROUP):
        for point in entry_points(group=group):
            other = found.get(point.name)
            if other is not None and other.value != point.value:
                raise ConfigError(f"two packages offer the guard {point.name!r}: {other.value} and {point.value}")
            found[point.name] = point
    return found


def slow_names() -> frozenset[str]:
    """The names of the slow guards that are installed."""
    return frozenset(available(SLOW_GROUP))


def build(names: Iterable[str], options: Mapping[str, Mapping[str, Any]], models: ModelStore) -> dict[str, Guard]:
    """Make the guards of these names, models loaded. Blocks while models load (seconds)."""
    known = available()
    guards: dict[str, Guard] = {}
    for name in names:
        point = known.get(name)
        if point is None:
            raise ConfigError(f"no guard is called {name!r}; installed are: {', '.join(sorted(known)) or 'none'}")
        guards[name] = point.load()(options.get(name, {}), models)
    return guards
