"""Building: a transformer's checkpoint → ONNX graphs that run without torch, checked against the original in torch.

Needs the standard extra. The export asks for attention written out (`eager`), which is the form that ONNX Runtime's
optimizer fuses; a graph that computes something else afterwards stays as it was exported.
"""

from __future__ import annotations

import itertools
import json
import pickle
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from guards.errors import ConfigError, ModelBuildError, ModelMissingError
from guards.models.precision import FP32_FILE, INT8_FILE, SAMPLES, Choice, choose
from guards.models.sources import ModelSpec, Progress
from guards.models.transformer import Description, Floats, Transformer, Window, activated, normalised

__all__ = ["BUILD_VERSION", "COSINE_BOUND", "FP32_BOUND", "INT8_BOUND", "build"]

BUILD_VERSION: Final = 1
"""Raised when built files change: the next build makes them anew."""

FP32_BOUND: Final = 1e-3  # of a score, or 1 - cosine: a graph that is further from the original is not the model
INT8_BOUND: Final = 0.05  # of a score: a threshold is seldom set finer
COSINE_BOUND: Final = 0.02  # 1 - cosine of int8 embeddings
OPSET: Final = 17
SHARED_WEIGHTS: Final = frozenset({"albert"})
"""Architectures whose layers are one layer, which the default path would quantise once for each use."""

_UNUSED: Final = re.compile(r"\.(position_ids|token_type_ids|pooler\.dense\.\w+)$")

_LABELS: Final[Mapping[str, str]] = {
    "toxic": "toxicity",
    "severe_toxic": "severe_toxicity",
    "identity_hate": "identity_attack",
}
"""Detoxify's checkpoints name three labels in two ways; these are the later names."""


class Original(NamedTuple):
    """A model in torch: ``module(**tensors)`` gives logits or embeddings (n, columns)."""

    module: Any
    config: Any
    about: Description


def build(spec: ModelSpec, folder: Path, progress: Progress) -> Choice:
    """Write graphs, tokenizer, model.json and the choice of precision for the files in ``folder``.

    Blocks: a minute or two for a model of 110 million parameters. Raises `ModelMissingError` without torch,
    `ConfigError` when the files are not such a model, and `ModelBuildError` when the fp32 graph's scores differ from
    the original's by more than `FP32_BOUND`.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ModelMissingError(
            f"building {spec.source} needs {error.name}: pip install 'tidegate[standard]', or copy the model's folder "
            "from a machine where it was built"
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    progress("load", 0.0)
    _write_tokenizer(folder)
    original = _encoder(folder) if spec.kind == "encoder" else _classifier(spec, folder)
    columns = original.about.outputs
    progress("export", 0.0)
    with torch.no_grad():
        _export(original, folder / FP32_FILE)
    progress("check", 0.0)
    expected = _expected(original, folder)
    shift = _fused(original, folder, expected)
    if shift is None:
        (folder / "model.json").write_bytes(msgspec.json.encode(original.about))
        shift = _runner(folder, FP32_FILE, expected)()
    measure = "1 - cosine" if spec.kind == "encoder" else "score"
    if not shift <= FP32_BOUND:
        raise ModelBuildError(
            f"{spec.source}: the fp32 graph is not the model: {measure} differs by {shift:.4g} from the original in "
            f"torch on {len(SAMPLES)} samples, allowed is {FP32_BOUND:g}; outputs: {', '.join(columns) or 'embedding'}"
        )
    shared = original.about.architecture in SHARED_WEIGHTS
    no_int8 = f"{original.about.architecture} shares its layers' weights: not quantised" if shared else ""
    progress("quantise", 0.0)
    return choose(
        folder,
        lambda file: _runner(folder, file, expected),
        samples=len(SAMPLES),
        measure="1 - cosine" if spec.kind == "encoder" else "score",
        fp32_shift=shift,
        fp32_bound=FP32_BOUND,
        int8_bound=COSINE_BOUND if spec.kind == "encoder" else INT8_BOUND,
        no_int8=no_int8,
    )


# ---------------------------------------------------------------- the original


def _write_tokenizer(folder: Path) -> None:
    """Make tokenizer.json from a vocabulary where the source has none."""
    if (folder / "tokenizer.json").is_file():
        return
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    except (OSError, ValueError, AttributeError, ImportError) as error:
        raise ConfigError(f"{folder.name}: no fast tokenizer can be made of its files ({error})") from error


def _classifier(spec: ModelSpec, folder: Path) -> Original:
    checkpoint = next(folder.glob("*.ckpt"), None)
    if checkpoint is not None:
        return _detoxify(spec, folder, checkpoint)
    from transformers import AutoModelForSequenceClassification

    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            folder, local_files_only=True, attn_implementation="eager", output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{spec.source}: its files are not a classifier's: {_first_line(error)}") from error
    if loading["missing_keys"]:
        raise ConfigError(f"{spec.source}: the weights lack {', '.join(sorted(loading['missing_keys'])[:3])}")
    config = model.config
    labels = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    several = config.problem_type == "multi_label_classification" or config.num_labels == 1
    return _original(model, config, labels, "sigmoid" if several else "softmax", folder)


def _detoxify(spec: ModelSpec, folder: Path, checkpoint: Path) -> Original:
    import transformers

    loaded = _unpickled(checkpoint, pinned=spec.pins().get(checkpoint.name) is not None)
    try:
        arguments = loaded["config"]["arch"]["args"]
        classes = loaded["config"]["dataset"]["args"]["classes"]
        weights: dict[str, Any] = dict(loaded["state_dict"])
        architecture, outputs = getattr(transformers, arguments["model_name"]), int(arguments["num_classes"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{spec.source}: {checkpoint.name} is not in Detoxify's format") from error
    try:
        config = architecture.config_class.from_pretrained(folder, num_labels=outputs, local_files_only=True)
        config._attn_implementation = "eager"
        model = architecture(config)
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{spec.source}: config.json does not fit the checkpoint: {_first_line(error)}") from error
    # Older versions of the library wrote the numbers of the positions too, and a pooler that nothing reads.
    foreign = [
        name for name in unexpected if not re.search(r"\.(position_ids|token_type_ids|pooler\.dense\.\w+)$", name)
    ]
    if missing or foreign:
        raise ConfigError(
            f"{spec.source}: config.json is of another model than the checkpoint, which lacks {missing[:3]} and has "
            f"{foreign[:3]}"
        )
    # The unbiased checkpoints have outputs of identity terms behind those that Detoxify names.
    labels = tuple(_LABELS.get(name, name) for name in classes)
    if len(labels) > outputs:
        raise ConfigError(f"{spec.source}: {checkpoint.name} names {len(labels)} classes for {outputs} outputs")
    return _original(model, config, labels, "sigmoid", folder)


def _unpickled(checkpoint: Path, *, pinned: bool) -> Any:
    """A pickle can run code when it is read: tensors and plain values alone, unless the profile pins its hash."""
    import torch

    try:
        return torch.load(checkpoint, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not pinned:
            raise ConfigError(
                f"{checkpoint.name} holds more than tensors and plain values, and reading it can run code: it is read "
                "only if the profile pins its SHA-256"
            ) from error
    except (RuntimeError, EOFError) as error:
        raise ConfigError(f"{checkpoint.name} is not a checkpoint: {_first_line(error)}") from error
    return torch.load(checkpoint, map_location="cpu", weights_only=False)


def _original(model: Any, config: Any, labels: tuple[str, ...], activation: Any, folder: Path) -> Original:
    import torch

    class Logits(torch.nn.Module):  # type: ignore[misc]
        """The outputs that have a name."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
            more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            logits = self.model(input_ids=input_ids, attention_mask=attention_mask, **more).logits
            return logits[:, : len(labels)]

    module = Logits().eval()  # on the wrapper too: the exporter puts it back into the mode that it has
    return Original(module, config, _description("classifier", config, labels, activation, folder))


def _encoder(folder: Path) -> Original:
    import torch
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(
            str(folder), device="cpu", local_files_only=True, model_kwargs={"attn_implementation": "eager"}
        )
        config = model[0].auto_model.config
    except (OSError, ValueError, RuntimeError, AttributeError) as error:
        raise ConfigError(f"{folder.name}: its files are not a sentence encoder's: {_first_line(error)}") from error

    class Embedding(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
            features = {"input_ids": input_ids, "attention_mask": attention_mask}
            if token_type_ids is not None:
                features["token_type_ids"] = token_type_ids
            return self.model(features)["sentence_embedding"]

    about = _description("encoder", config, (), "none", folder)
    with torch.no_grad():
        ids = torch.full((1, 2), about.pad_id)
        columns = int(Embedding().eval()(ids, torch.ones_like(ids)).shape[1])
    limit = min(about.window_tokens, int(model.max_seq_length or about.window_tokens))
    return Original(Embedding().eval(), config, msgspec.structs.replace(about, dimensions=columns, window_tokens=limit))


def _description(kind: Any, config: Any, labels: tuple[str, ...], activation: Any, folder: Path) -> Description:
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    if (getattr(config, "type_vocab_size", 0) or 0) > 1:
        inputs += ("token_type_ids",)
    pad_id = int(config.pad_token_id or 0)
    # RoBERTa's positions begin after the padding token's own number.
    positions = int(config.max_position_embeddings) - (pad_id + 1 if "roberta" in config.model_type else 0)
    return Description(
        kind=kind,
        architecture=str(config.model_type),
        graph="exported",
        outputs=labels,
        activation=activation,
        window_tokens=min(positions, _tokenizer_limit(folder)),
        pad_id=pad_id,
        inputs=inputs,
        dimensions=0,
    )


def _tokenizer_limit(folder: Path) -> int:
    path = folder / "tokenizer_config.json"
    limit = json.loads(path.read_text()).get("model_max_length") if path.is_file() else None
    return int(limit) if limit else 1 << 20


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


# ---------------------------------------------------------------- graphs


def _export(original: Original, target: Path) -> None:
    import torch

    ids = torch.full((2, 8), original.about.pad_id + 3)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    tensors = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    names = list(original.about.inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of shapes that are constant in the trace: batch and length are not
        torch.onnx.export(
            original.module,
            tuple(tensors[name] for name in names),
            str(target),
            dynamo=False,  # the other exporter needs a package more, and its graphs do not fuse
            input_names=names,
            output_names=["output"],
            dynamic_axes={name: {0: "batch", 1: "tokens"} for name in names} | {"output": {0: "batch"}},
            opset_version=OPSET,
        )


def _fused(original: Original, folder: Path, expected: Sequence[Floats]) -> float | None:
    """Put the optimised graph in the exported one's place and return its shift; none (and nothing done) if it fails."""
    from onnxruntime.transformers import optimizer

    exported, fused = folder / FP32_FILE, folder / "fused.onnx"
    heads = int(getattr(original.config, "num_attention_heads", 0))
    hidden = int(getattr(original.config, "hidden_size", 0))
    optimised = optimizer.optimize_model(
        str(exported), model_type="bert", num_heads=heads, hidden_size=hidden, opt_level=0
    )
    attention = optimised.get_fused_operator_statistics().get("Attention", 0)
    about = msgspec.structs.replace(original.about, graph="fused" if attention else "optimised")
    optimised.save_model_to_file(str(fused))
    kept = folder / "exported.onnx"
    exported.rename(kept)
    fused.rename(exported)
    (folder / "model.json").write_bytes(msgspec.json.encode(about))
    try:
        shift = _runner(folder, FP32_FILE, expected)()
    except Exception:  # ONNX Runtime's exceptions have no common type; whatever it is, the graph is not used
        shift = float("inf")
    if shift <= FP32_BOUND:
        kept.unlink()
        return shift
    kept.rename(exported)
    return None


# ---------------------------------------------------------------- comparing


def _expected(original: Original, folder: Path) -> list[Floats]:
    """What the original says of each sample's windows, each by itself and without padding."""
    import torch

    (folder / "model.json").write_bytes(msgspec.json.encode(original.about))
    transformer = Transformer(folder, "fp32")
    found: list[Floats] = []
    with torch.no_grad():
        for window in _sample_windows(transformer):
            ids = torch.tensor([window.ids])
            tensors = {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "token_type_ids": torch.tensor([window.types]),
            }
            output = original.module(*(tensors[name] for name in original.about.inputs)).numpy()
            found.append(_comparable(output, original.about))
    return found


def _sample_windows(transformer: Transformer) -> list[Window]:
    """The samples, and for a classifier also the first few in pairs: a second text has a type of its own."""
    windows = [window for sample in SAMPLES for window in transformer.windows(sample)]
    if transformer.about.kind == "classifier":
        for first, second in itertools.pairwise(SAMPLES[:9]):
            windows += itertools.chain.from_iterable(transformer.pair_windows(first, second))
    return windows


def _comparable(output: Floats, about: Description) -> Floats:
    return normalised(output) if about.kind == "encoder" else activated(output, about.activation)


def _runner(folder: Path, file: str, expected: Sequence[Floats]) -> Callable[[], float]:
    """A variant, loaded: all samples in one call, as at run time; returns how far it is from the original."""
    transformer = Transformer(folder, "int8" if file == INT8_FILE else "fp32")
    windows = _sample_windows(transformer)
    original = np.concatenate(expected)

    def run() -> float:
        rows = _comparable(transformer.run(windows), transformer.about)
        if transformer.about.kind == "encoder":
            return float(np.max(1 - np.sum(rows * original, axis=1)))
        return float(np.max(np.abs(rows - original)))

    return run
