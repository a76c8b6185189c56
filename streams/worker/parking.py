"""Responses that wait for their requests: pure, time and offsets injected.

A response and its request may be consumed by two workers, in either order. A response whose request is not in the
store is parked. It is released with its request as soon as that is there; without it once everything that was
published to the requests topic until ``wait_s`` after the parking has been taken in by the workers, and the request
was not among it. So a backlog or a take-over, however long, never fails a join, and a clock that is wrong neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

__all__ = ["Parking"]

T = TypeVar("T")


class _Place(Generic[T]):
    __slots__ = ("ends", "item", "parked_s")

    def __init__(self, item: T, parked_s: float) -> None:
        self.item = item
        self.parked_s = parked_s
        self.ends: Mapping[int, int] | None = None


class Parking(Generic[T]):
    """``wait_s``: how long after parking a request may still be published and be found. ``capacity``: places."""

    def __init__(self, wait_s: float, capacity: int) -> None:
        self._wait_s = wait_s
        self._capacity = capacity
        self._places: list[_Place[T]] = []

    def __len__(self) -> int:
        return len(self._places)

    @property
    def full(self) -> bool:
        return len(self._places) >= self._capacity

    def park(self, item: T, now_s: float) -> None:
        self._places.append(_Place(item, now_s))

    @property
    def items(self) -> list[T]:
        return [place.item for place in self._places]

    def wants_ends(self, now_s: float) -> bool:
        """Whether some place has waited long enough that the requests' end offsets should be noted now."""
        return any(place.ends is None and now_s - place.parked_s >= self._wait_s for place in self._places)

    def note_ends(self, ends: Mapping[int, int], now_s: float) -> None:
        """Partition → end offset of the requests topic, read just now (after ``now_s`` was taken)."""
        for place in self._places:
            if place.ends is None and now_s - place.parked_s >= self._wait_s:
                place.ends = ends

    def release(self, found: Sequence[bool], progress: Mapping[int, int]) -> tuple[list[int], list[int]]:
        """Which places end: (indices with a request, indices without), given which requests were found, in order of
        `items`, and the progress of the requests' consumption (partition → next offset).

        ``progress`` must have been read before ``found`` was looked up: then a request that was taken in is in it.
        """
        with_request = [number for number, is_there in enumerate(found) if is_there]
        without = [
            number
            for number, (place, is_there) in enumerate(zip(self._places, found, strict=False))
            if not is_there and place.ends is not None and _passed(progress, place.ends)
        ]
        return with_request, without

    def remove(self, numbers: Sequence[int]) -> list[T]:
        """Take these places out; returns their items in order of parking."""
        gone = set(numbers)
        items = [place.item for number, place in enumerate(self._places) if number in gone]
        self._places = [place for number, place in enumerate(self._places) if number not in gone]
        return items


def _passed(progress: Mapping[int, int], ends: Mapping[int, int]) -> bool:
    return all(progress.get(partition, 0) >= end for partition, end in ends.items())
