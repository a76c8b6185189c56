"""Claims: which (topic, partition, offset) of an event is the one that counts. The first to claim is it."""

from __future__ import annotations

import msgspec

from streams.events import Labels
from streams.monitor.windows import Source

__all__ = ["Claim", "decode_claim", "encode_claim"]


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """The value of a claim. The labels and the choice of the overflow series are those of the first count.

    A redelivery is counted under them again, so that an event cannot end up in two series.
    """

    topic: str
    partition: int
    offset: int
    labels: Labels = Labels()
    overflow: bool = False

    def is_of(self, source: Source, offset: int) -> bool:
        """Whether it was this very record that claimed."""
        return self.offset == offset and self.partition == source.partition and self.topic == source.topic


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Claim)


def encode_claim(claim: Claim) -> bytes:
    return _encoder.encode(claim)


def decode_claim(raw: bytes) -> Claim:
    """Raises `msgspec.DecodeError` for what is no claim."""
    return _decoder.decode(raw)
