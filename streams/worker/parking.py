"""Responses that wait for their requests: pure, time and offsets injected.

A response and its request may be consumed by two workers, in either order. A response whose request is not in the
store is parked. It is released with its request as soon as that is there; without it once everything that was
published to the requests topic until ``wait_s`` after the parking has been taken in by the workers, and the request
was not among it. So a backlog or a take-over, however long, never fails a join, and a clock that is wrong neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

__all__ = ["Parking", "Place"]

T = TypeVar("T")


class Place(Generic[T]):
    """Where an item waits. ``ends``: partition → end offset of the requests topic, once it has been noted."""

    __slots__ = ("ends", "item", "parked_s")

    def __init__(self, item: T, parked_s: float) -> None:
        self.item = item
        self.parked_s = parked_s
        self.ends: Mapping[int, int] | None = None

    def hopeless(self, progress: Mapping[int, int]) -> bool:
        """Whether all requests that this item could wait for have been taken in (partition → next offset)."""
        return self.ends is not None and all(progress.get(p, 0) >= end for p, end in self.ends.items())


class Parking(Generic[T]):
    """``wait_s``: how long after parking a request may still be published and be found. ``capacity``: places.

    To release: read the progress, then look the requests up, then `remove` the places that found theirs or are
    `Place.hopeless` by that progress. In this order a request that counts as taken in has been looked for.
    """

    def __init__(self, wait_s: float, capacity: int) -> None:
        self._wait_s = wait_s
        self._capacity = capacity
        self._places: dict[int, Place[T]] = {}

    def __len__(self) -> int:
        return len(self._places)

    @property
    def full(self) -> bool:
        return len(self._places) >= self._capacity

    @property
    def places(self) -> list[Place[T]]:
        """All places, in order of parking."""
        return list(self._places.values())

    def park(self, item: T, now_s: float) -> None:
        place = Place(item, now_s)
        self._places[id(place)] = place

    def wants_ends(self, now_s: float) -> bool:
        """Whether some place has waited long enough that the requests' end offsets should be noted now."""
        return any(place.ends is None and now_s - place.parked_s >= self._wait_s for place in self._places.values())

    def note_ends(self, ends: Mapping[int, int], now_s: float) -> None:
        """Partition → end offset of the requests topic, read after ``now_s`` was taken."""
        for place in self._places.values():
            if place.ends is None and now_s - place.parked_s >= self._wait_s:
                place.ends = ends

    def remove(self, places: Iterable[Place[T]]) -> list[T]:
        """Take these places out; returns the items of those that were still there."""
        return [place.item for place in places if self._places.pop(id(place), None) is not None]
