"""torch against ONNX fp32 and int8, side by side in one run: Detoxify's BERT, MiniLM, and a cross-encoder on MiniLM.

    .venv-standard/bin/python load-tests/models.py [--rounds 3] [--models detoxify,minilm,cross-encoder]

Weights are random (but MiniLM's, which are in the store): speed does not depend on them. Architectures, tokenizer and
build are the real ones; the texts are `guards.models.precision.SAMPLES`. Takes some minutes, most of them for building.
Writes load-tests/results/models-<machine>.json. A figure is texts/s of the best round, on one core: the process is held
to one, because threads that wait for each other lose most where others work too. The contenders take turns, so that
such load meets all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

from guards.models import ModelSpec, ModelStore, convert, minilm
from guards.models.encoder import MiniLmEncoder
from guards.models.precision import INT8_FILE, SAMPLES, Machine
from guards.models.store import ENCODER_COSINE_BOUND
from guards.models.transformer import Classifier, Transformer

RESULTS = Path(__file__).parent / "results"
TORCH_BATCH = 8
PAIRS = [(first, second) for first, second in zip(SAMPLES, reversed(SAMPLES), strict=True)]
LABELS = ["toxicity", "severe_toxicity", "obscene", "threat", "insult", "identity_attack"]

Contenders = dict[str, Callable[[], Any]]


def classifier_folder(folder: Path, tokenizer: Path, labels: Sequence[str], **sizes: int) -> Any:
    """A BERT classifier with random weights, as the hub would have it, and in torch."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    torch.manual_seed(7)
    config = BertConfig(num_labels=len(labels), id2label=dict(enumerate(labels)), **sizes)
    if len(labels) > 1:
        config.problem_type = "multi_label_classification"
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), pad_token="[PAD]", model_max_length=512)
    return model, fast


def torch_runs(model: Any, tokenizer: Any, inputs: Sequence[Any]) -> Contenders:
    """torch one by one, and in batches sorted by length."""
    import torch

    def run(batch: int) -> Callable[[], None]:
        def scores() -> None:
            ordered = sorted(inputs, key=lambda text: len(str(text)))
            with torch.inference_mode():
                for begin in range(0, len(ordered), batch):
                    chosen = ordered[begin : begin + batch]
                    pairs = isinstance(chosen[0], tuple)
                    columns = [list(column) for column in zip(*chosen, strict=True)] if pairs else [chosen]
                    encoded = tokenizer(*columns, padding=True, truncation=True, return_tensors="pt")
                    model(**encoded)

        return scores

    return {"torch, one by one": run(1), f"torch, batches of {TORCH_BATCH}": run(TORCH_BATCH)}


def classifier(name: str, work: Path, tokenizer: Path, labels: Sequence[str], **sizes: int) -> tuple[Contenders, Any]:
    folder = work / name
    folder.mkdir()
    model, fast = classifier_folder(folder, tokenizer, labels, **sizes)
    choice = convert.build(ModelSpec(f"folder:{folder}"), folder, lambda step, _: say(f"{name}: {step}"))
    inputs: Sequence[Any] = PAIRS if len(labels) == 1 else SAMPLES
    contenders = torch_runs(model, fast, inputs)
    for precision in ("fp32", "int8"):
        runner = Classifier(Transformer(folder, precision), name)  # type: ignore[arg-type]
        contenders[f"ONNX {precision}"] = partial(runner.score_pairs if len(labels) == 1 else runner.score, inputs)
    return contenders, choice


def encoder(work: Path, source: Path) -> tuple[Contenders, Any]:
    from transformers import BertModel, PreTrainedTokenizerFast

    folder = work / "minilm"
    folder.mkdir()
    for name in minilm.SOURCE_FILES:
        shutil.copyfile(source / name, folder / name)
    say("minilm: build")
    minilm.build_graph(folder)
    choice = minilm.choose_precision(folder, ENCODER_COSINE_BOUND)
    tokenizer_file = str(folder / "tokenizer.json")
    fast = PreTrainedTokenizerFast(tokenizer_file=tokenizer_file, pad_token="[PAD]", model_max_length=256)
    contenders = torch_runs(BertModel.from_pretrained(folder).eval(), fast, SAMPLES)
    for precision, file in (("fp32", minilm.GRAPH_FILE), ("int8", INT8_FILE)):
        contenders[f"ONNX {precision}"] = partial(MiniLmEncoder(folder, file).encode, SAMPLES)
    return contenders, choice


def measure(contenders: Contenders, rounds: int) -> dict[str, float]:
    """texts/s of the best round of each; the first round, which is not counted, warms up."""
    best: dict[str, float] = {}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            began = perf_counter()
            run()
            rate = len(SAMPLES) / (perf_counter() - began)
            if number:
                best[name] = max(best.get(name, 0.0), rate)
    return {name: round(rate, 1) for name, rate in best.items()}


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", default="detoxify,minilm,cross-encoder")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    store = ModelStore()
    store.encoder()  # says what to do when it is missing
    source = store.list()[0].path
    tokenizer = source / "tokenizer.json"
    six_layers = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
    makers: dict[str, Callable[[Path], tuple[Contenders, Any]]] = {
        "detoxify": lambda work: classifier("detoxify", work, tokenizer, LABELS),
        "minilm": lambda work: encoder(work, source),
        "cross-encoder": lambda work: classifier("cross-encoder", work, tokenizer, ["LABEL_0"], **six_layers),
    }
    results: dict[str, Any] = {}
    for name in options.models.split(","):
        with tempfile.TemporaryDirectory() as work:
            contenders, choice = makers[name](Path(work))
            say(f"{name}: measure")
            results[name] = {"texts_per_s": measure(contenders, options.rounds), "choice": msgspec.to_builtins(choice)}
        for contender, rate in results[name]["texts_per_s"].items():
            print(f"{name:14} {contender:22} {rate:8.1f} texts/s")
        print(f"{name:14} models build takes {choice.chosen}: {choice.reason}")
    machine = Machine.here()
    packages = {package: version(package) for package in ("torch", "transformers", "onnxruntime", "tokenizers")}
    report = {
        "command": " ".join(["python", *sys.argv]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": machine.processor,
        "cores": machine.cores,
        "vnni": machine.vnni,
        "held_to_cores": 1,
        "versions": {**machine.versions, **packages},
        "samples": len(SAMPLES),
        "sample_chars": sum(map(len, SAMPLES)),
        "warm_up_rounds": 1,
        "rounds": options.rounds,
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", f"{machine.processor} {machine.cores} cores".lower()).strip("-")
    target = RESULTS / f"models-{slug}.json"
    target.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {target}")


if __name__ == "__main__":
    main()
