"""The PII guard on the development data: what it finds, and what its screen misses. Skips where the data is absent."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from guards.artifacts import Artifacts
from guards.models import ModelStore
from guards.pii import Options, build
from guards.pii.found import DEFAULT_KINDS
from guards.pii.names import person_score
from guards.pii.windows import MAX_MISS_RATE, windows
from guards.types import Exchange, Failure, Text, Unit

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
LABELS = {
    *("PERSON", "PREFIX", "ADDRESS", "CREDIT_CARD", "PHONE_NUMBER", "EMAIL_ADDRESS", "US_SSN", "IBAN_CODE"),
    *("US_DRIVER_LICENSE", "IP_ADDRESS"),
}


def rows(path: Path, count: int) -> list[dict[str, Any]]:
    if not path.is_file():
        pytest.skip(f"the development data {path.name} is not there")
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    found = [json.loads(line) for line in data.splitlines()]
    return random.Random(1).sample(found, min(count, len(found)))


def test_most_characters_of_personal_data_are_found(store: ModelStore) -> None:
    data = rows(DATA / "pii" / "presidio_generated_large.jsonl", 500)
    guard, artifacts, options = build({}, store), Artifacts(None, store.entities), Options(kinds=DEFAULT_KINDS)
    units = [Unit((Text(row["text"], "user"),), Exchange(), "request") for row in data]
    artifacts.prepare([], [text for unit in units for text in guard.needs(unit, options).parse])
    hit = missed = false = 0
    for row, result in zip(data, guard.check(units, options, artifacts), strict=True):
        assert not isinstance(result, Failure)
        gold = {at for s in row["spans"] if s["label"] in LABELS for at in range(s["start"], s["end"])}
        seen = {at for h in result if h.score >= 0.5 for at in range(h.ranges[0].start, h.ranges[0].end)}
        hit, missed, false = hit + len(gold & seen), missed + len(gold - seen), false + len(seen - gold)
    precision, recall = hit / (hit + false), hit / (hit + missed)
    assert 5 * precision * recall / (4 * precision + recall) > 0.88  # 0.90 and more on the whole set


def test_the_screen_misses_few(store: ModelStore) -> None:
    exchanges = rows(DATA / "traffic" / "exchanges.jsonl.gz", 1_200)
    texts = sorted({m["content"] for e in exchanges for m in e["messages"] if m["role"] != "system" and m["content"]})
    missed = 0
    for text, entities in zip(texts, store.entities().parse(texts), strict=True):
        parts = windows(text)
        people = [e for e in entities if e.label == "PERSON" and person_score(text[e.start : e.end]) >= 0.5]
        missed += any(not any(part.start <= e.start < part.end for part in parts) for e in people)
    assert missed / len(texts) < MAX_MISS_RATE
