"""The Detoxify backend on a small checkpoint in Detoxify's own format, made here and loaded as a real one is."""

from __future__ import annotations

import hashlib
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.standard

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'tidegate[standard]'")
pytest.importorskip("detoxify", reason="detoxify is not installed: pip install 'tidegate[standard]'")
import transformers  # noqa: E402

from guards.artifacts import Artifacts  # noqa: E402
from guards.errors import ConfigError, ModelMissingError  # noqa: E402
from guards.guard import NoOptions, Result  # noqa: E402
from guards.models import ModelStore  # noqa: E402
from guards.toxicity import ToxicityGuard, build  # noqa: E402
from guards.types import Exchange, Failure, FailureCode, Text, Unit  # noqa: E402

CLASSES = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
KINDS = ["toxicity", "severe_toxicity", "obscene", "threat", "insult", "identity_attack"]
WORDS = ["you", "are", "a", "nice", "stupid", "person", "the", "weather", "is", "good", ".", "?"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration and tokenizer files of a tiny BERT with six labels."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 32})
    )
    transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        num_labels=len(CLASSES),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights, large enough that each word moves the scores."""
    torch.manual_seed(7)
    model = transformers.BertForSequenceClassification(transformers.BertConfig.from_pretrained(config))
    with torch.no_grad():  # initial weights are so small that every score would be 0.5
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.7)
    model.eval()
    path = tmp_path_factory.mktemp("checkpoint") / "toxic_tiny.ckpt"
    arguments = {
        "model_type": "bert-base-uncased",
        "model_name": "BertForSequenceClassification",
        "tokenizer_name": "BertTokenizer",
        "num_classes": len(CLASSES),
    }
    torch.save(
        {
            "config": {"arch": {"args": arguments}, "dataset": {"args": {"classes": CLASSES}}},
            "state_dict": model.state_dict(),
        },
        path,
    )
    return path


def options(checkpoint: Path, config: Path) -> dict[str, str]:
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    return {"backend": "detoxify", "checkpoint": str(checkpoint), "config": str(config), "sha256": digest}


@pytest.fixture(scope="module")
def guard(checkpoint: Path, config: Path) -> ToxicityGuard:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the backend wants the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        return build(options(checkpoint, config), ModelStore())


def check(guard: ToxicityGuard, *texts: str) -> list[Result]:
    units = [Unit((Text(text, "user"),), Exchange(), "request") for text in texts]
    return list(guard.check(units, NoOptions(), Artifacts(None, None)))


def test_scores_all_six_labels_as_the_model_does(guard: ToxicityGuard, checkpoint: Path, config: Path) -> None:
    text = "you are a nice person."
    (hits,) = check(guard, text)
    assert not isinstance(hits, Failure)
    assert [hit.kind for hit in hits] == KINDS

    model = transformers.BertForSequenceClassification(transformers.BertConfig.from_pretrained(config))
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    model.eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(config)
    with torch.no_grad():
        expected = torch.sigmoid(model(**tokenizer(text, return_tensors="pt"))[0])[0].tolist()
    assert [hit.score for hit in hits] == pytest.approx(expected, abs=6e-4)
    assert all((part.start, part.end) == (0, len(text)) for hit in hits for part in hit.ranges)


def test_the_end_of_a_long_text_counts(guard: ToxicityGuard) -> None:
    filler, end = "the weather is good . " * 40, "stupid " * 100
    both, first, last = check(guard, filler + end, filler, end)
    assert not isinstance(both, Failure)
    assert not isinstance(first, Failure)
    assert not isinstance(last, Failure)
    raised = [(b, z) for b, a, z in zip(both, first, last, strict=True) if z.score > a.score + 0.05]
    assert raised, "the test's model does not tell these texts apart"
    for hit, alone in raised:
        assert hit.score >= alone.score - 0.002
        assert all(part.end > len(filler) for part in hit.ranges)


def test_a_batch_gives_what_single_texts_give(guard: ToxicityGuard) -> None:
    texts = ["you are nice", "", "the weather is good . " * 30, "stupid \ud800 person", "😀 nice"]
    assert check(guard, *texts) == [check(guard, text)[0] for text in texts]


def test_threads_agree(guard: ToxicityGuard) -> None:
    texts = ["you are nice", "the weather is good . " * 30, "stupid person"]
    expected = check(guard, *texts)
    with ThreadPoolExecutor(4) as pool:
        assert all(result == expected for result in pool.map(lambda _: check(guard, *texts), range(16)))


def test_an_oversized_text_fails_alone(guard: ToxicityGuard) -> None:
    large, small = check(guard, "a" * 131_073, "you are nice")
    assert large == Failure(FailureCode.INPUT_TOO_LARGE)
    assert not isinstance(small, Failure)


def test_another_hash_is_refused(checkpoint: Path, config: Path) -> None:
    with pytest.raises(ConfigError, match="sha256"):
        build({**options(checkpoint, config), "sha256": "0" * 64}, ModelStore())


def test_a_missing_checkpoint_names_the_command(checkpoint: Path, config: Path, tmp_path: Path) -> None:
    for missing in ({"checkpoint": str(tmp_path / "none.ckpt")}, {"config": str(tmp_path)}):
        with pytest.raises(ModelMissingError, match=r"curl .*hf download"):
            build({**options(checkpoint, config), **missing}, ModelStore())
    with pytest.raises(ModelMissingError, match="checkpoint, config, sha256"):
        build({"backend": "detoxify"}, ModelStore())


def test_the_configuration_of_another_model_is_refused(checkpoint: Path, config: Path, tmp_path: Path) -> None:
    for file in config.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    other = json.loads((config / "config.json").read_text()) | {"num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(other))
    with pytest.raises(ConfigError, match="config"):
        build(options(checkpoint, tmp_path), ModelStore())


def test_a_file_in_another_format_is_refused(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    torch.save({"weights": torch.zeros(1)}, path)
    with pytest.raises(ConfigError, match="format"):
        build(options(path, config), ModelStore())
