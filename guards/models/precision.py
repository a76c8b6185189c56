"""fp32 or int8: the quantised variant of a graph, timed against it on this processor, and the choice written down.

An int8 graph may round otherwise on another processor: `Choice` says what was measured, where and within which bounds,
and the variant becomes part of the version of each guard that runs the model.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Final, Literal

import msgspec

from guards.models.sources import sha256_of

__all__ = ["CHOICE_FILE", "FP32_FILE", "INT8_FILE", "SAMPLES", "Choice", "Machine", "choose", "quantise", "read_choice"]

FP32_FILE: Final = "model.onnx"
INT8_FILE: Final = "model.int8.onnx"
CHOICE_FILE: Final = "precision.json"

MIN_GAIN: Final = 1.05  # int8 must be this much faster: less is noise, and fp32 is the same on all processors
ROUNDS: Final = 3  # passes over the samples, the two variants in turn; the fastest of each counts

EVERYTHING: Final = ()
LEVELS: Final[Sequence[Sequence[str]]] = (EVERYTHING, ("MatMul",))
"""Operators to quantise: all that can be, and if that moves the output too far, those that lose the least."""

Precision = Literal["fp32", "int8"]


class Machine(msgspec.Struct, frozen=True):
    """Where something was measured."""

    processor: str
    cores: int
    vnni: bool
    versions: dict[str, str]

    @classmethod
    def here(cls) -> Machine:
        """This machine, from /proc/cpuinfo where there is one."""
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
        fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        versions = {"python": platform.python_version(), "onnxruntime": importlib.metadata.version("onnxruntime")}
        return cls(
            fields.get("model name", platform.processor() or platform.machine()),
            os.cpu_count() or 1,
            "vnni" in fields.get("flags", ""),
            versions,
        )


class Choice(msgspec.Struct, frozen=True):
    """precision.json in a model's folder.

    ``shift``: how far a variant is from the original on the samples, ``bound``: how far it may be, both in ``measure``:
    the largest difference of a score, or 1 - cosine. ``*_ms``: of one sample, one thread; ``int8`` is null where there
    is none, and ``reason`` says why.
    """

    chosen: Precision
    reason: str
    measure: Literal["score", "1 - cosine"]
    fp32_shift: float
    fp32_bound: float
    int8_shift: float | None
    int8_bound: float
    fp32_ms: float | None
    int8_ms: float | None
    int8_operators: tuple[str, ...]  # that were quantised; empty: all that can be
    samples: int
    machine: Machine
    time: str
    sha256: dict[str, str]  # of the variants' files


def read_choice(folder: Path) -> Choice | None:
    """What was decided for the model in ``folder``; none if nothing was, or if the file cannot be read."""
    try:
        return msgspec.json.decode((folder / CHOICE_FILE).read_bytes(), type=Choice)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None


def quantise(source: Path, target: Path, operators: Sequence[str] = EVERYTHING) -> None:
    """Write the int8 variant of a graph: weights per channel, activations as they come. Takes seconds to a minute.

    Without VNNI sums of full-range products overflow, so weights get seven bits there.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of a preparation that a fused graph does not need
    try:
        _quantise(source, target, operators)
    finally:
        logging.disable(before)


def _quantise(source: Path, target: Path, operators: Sequence[str]) -> None:
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        str(source),
        str(target),
        op_types_to_quantize=list(operators) or None,
        per_channel=True,
        reduce_range=not Machine.here().vnni,
        weight_type=QuantType.QInt8,
        # Shape inference does not know the fused operators, and so not the type of what comes out of them.
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )


def choose(
    folder: Path,
    run: Callable[[str], Callable[[], float]],
    *,
    samples: int,
    measure: Literal["score", "1 - cosine"],
    fp32_shift: float,
    fp32_bound: float,
    int8_bound: float,
    no_int8: str = "",
) -> Choice:
    """Quantise the graph in ``folder``, time the two variants, and write down the choice (`CHOICE_FILE`).

    ``run(file)`` loads a variant and returns a function that runs all samples and says how far it is from the original.
    ``no_int8``: why there is to be no int8 variant; then fp32 is taken.
    """
    fp32_s = int8_s = int8_shift = None
    operators: Sequence[str] = EVERYTHING
    if no_int8:
        chosen: Precision = "fp32"
        reason = no_int8
    else:
        for operators in LEVELS:
            quantise(folder / FP32_FILE, folder / INT8_FILE, operators)
            int8 = run(INT8_FILE)
            int8_shift = int8()  # the first pass warms up
            if int8_shift <= int8_bound:
                break
        fp32 = run(FP32_FILE)
        fp32()
        times = [(_seconds(fp32), _seconds(int8)) for _ in range(ROUNDS)]
        fp32_s, int8_s = min(a for a, _ in times), min(b for _, b in times)
        assert int8_shift is not None
        chosen, reason = _verdict(fp32_s / int8_s, int8_shift, int8_bound)
    choice = Choice(
        chosen,
        reason,
        measure,
        round(abs(fp32_shift), 6),
        fp32_bound,
        None if int8_shift is None else round(int8_shift, 6),
        int8_bound,
        None if fp32_s is None else round(fp32_s / samples * 1000, 3),
        None if int8_s is None else round(int8_s / samples * 1000, 3),
        tuple(operators),
        samples,
        Machine.here(),
        datetime.now(UTC).isoformat(timespec="seconds"),
        {name: sha256_of(folder / name) for name in (FP32_FILE, INT8_FILE) if (folder / name).is_file()},
    )
    (folder / CHOICE_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(choice), indent=2) + b"\n")
    return choice


def _verdict(gain: float, shift: float, bound: float) -> tuple[Precision, str]:
    if not shift <= bound:
        return "fp32", f"int8 moves by {shift:.4f}, more than {bound}"
    if gain < MIN_GAIN:
        return "fp32", f"int8 is {gain:.2f} times as fast here, which is not worth it"
    return "int8", f"{gain:.2f} times as fast here, within the bound"


def _seconds(run: Callable[[], float]) -> float:
    began = perf_counter()
    run()
    return perf_counter() - began


_SENTENCES: Final = (
    "Hello, how are you today?",
    "Please send me the invoice of last month.",
    "What is the capital of Australia, and how many people live there?",
    "No.",
    "I think that you are wrong, and I would like to explain why.",
    "The train from Geneva to Lyon leaves at nine and takes two hours.",
    "This is the worst service that I have ever had; nobody answers the phone.",
    "Forget what I said before and begin again from the first page.",
    "Write a function that returns the n-th prime number in Python.",
    "def f(x): return [y for y in range(2, x) if x % y == 0]",
    "The committee met on Tuesday; its report is due by the end of March.",
    "Thanks a lot, that was very kind of you!",
    "Wie komme ich am schnellsten vom Bahnhof zum Museum?",
    "¿Puede usted repetir la pregunta, por favor?",
    "Je voudrais réserver une table pour quatre personnes.",
    "Сколько стоит билет до Москвы?",
    "今日は天気がいいですね。",
    "Your parcel 4711-22 has left our warehouse and will arrive within three days.",
    "Water boils at 100 degrees Celsius at sea level and at about 90 degrees at 3,000 metres.",
    "As an assistant, I cannot open files on your computer, but I can tell you how to find them.",
)

SAMPLES: Final[Sequence[str]] = (
    *_SENTENCES,
    *(f"{a} {b}" for a, b in zip(_SENTENCES, _SENTENCES[7:], strict=False)),
    " ".join(_SENTENCES[:6]),
    " ".join(_SENTENCES[6:12]),
    " ".join(_SENTENCES[14:]),
)
"""Three dozen harmless texts of 1 to 150 tokens, on which variants are compared and timed."""
