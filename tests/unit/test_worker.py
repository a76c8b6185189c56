"""The pure parts of the workers: the order of acknowledgement, and responses that wait for their requests."""

from __future__ import annotations

import random

from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from streams.worker.app import OrderedAcks
from streams.worker.parking import Parking

ONE, TWO = TP("t", 0), TP("t", 1)


def test_nothing_is_acknowledged_past_a_hole() -> None:
    acks = OrderedAcks()
    entries = [acks.take(ONE, offset, None, 0.0) for offset in range(4)]
    other = acks.take(TWO, 0, None, 0.0)
    assert acks.finish([entries[1], entries[2]]) == []
    assert acks.finish([other]) == [other]
    assert acks.finish([entries[0]]) == entries[:3]
    assert acks.oldest_s() == 0.0
    assert acks.finish([entries[3]]) == [entries[3]]
    assert len(acks) == 0


def test_what_was_revoked_is_not_acknowledged() -> None:
    acks = OrderedAcks()
    old = acks.take(ONE, 5, None, 0.0)
    acks.revoke([ONE])
    again = acks.take(ONE, 5, None, 1.0)
    assert not acks.holds(old)
    assert acks.finish([old]) == []
    assert acks.holds(again)
    assert acks.finish([again]) == [again]


@given(st.integers(1, 40), st.randoms(use_true_random=False))
def test_acknowledged_is_always_a_prefix(count: int, rng: random.Random) -> None:
    acks = OrderedAcks()
    entries = [acks.take(ONE, offset, None, 0.0) for offset in range(count)]
    order = list(entries)
    rng.shuffle(order)
    seen: list[int] = []
    for entry in order:
        seen += [ready.offset for ready in acks.finish([entry])]
        assert seen == list(range(len(seen)))
    assert len(seen) == count


def test_a_parked_response_leaves_its_place_once() -> None:
    parking: Parking[str] = Parking(wait_s=10, capacity=2)
    parking.park("a", 0.0)
    parking.park("b", 1.0)
    assert parking.full
    first, second = parking.places
    assert parking.remove([second]) == ["b"]
    assert parking.remove([second, first]) == ["a"]  # one that was revoked meanwhile is passed over
    assert len(parking) == 0


def test_the_wait_ends_by_consumption_not_by_the_clock() -> None:
    parking: Parking[str] = Parking(wait_s=10, capacity=9)
    parking.park("a", 0.0)
    (place,) = parking.places
    assert not parking.wants_ends(9.9)
    assert parking.wants_ends(10.0)
    assert not place.hopeless({0: 10**9})
    parking.note_ends({0: 100, 1: 7}, 10.0)
    assert not place.hopeless({0: 99, 1: 7})  # a backlog of one: hours may pass
    assert not place.hopeless({0: 100})
    assert place.hopeless({0: 100, 1: 7})
