"""Detoxify's five checkpoints in small: their architectures, formats and labels, from a release page to a score."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytestmark = pytest.mark.standard

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'tidegate[standard]'")
from tokenizers import Tokenizer  # noqa: E402

from guards.errors import ConfigError, ModelMissingError  # noqa: E402
from guards.guard import Guard  # noqa: E402
from guards.models import ModelPullError, ModelState, ModelStore, sources  # noqa: E402
from guards.types import Failure, FailureCode, Hit  # noqa: E402
from tests.hub import Hub  # noqa: E402
from tests.standard import checkpoints  # noqa: E402
from tests.standard.conftest import ask, made, pins  # noqa: E402

ORIGINAL = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
UNBIASED = ["toxicity", "severe_toxicity", "obscene", "identity_attack", "insult", "threat", "sexual_explicit"]
ORIGINAL_KINDS = ["toxicity", "severe_toxicity", "obscene", "threat", "insult", "identity_attack"]


class Variant(NamedTuple):
    """Architecture, classes that the checkpoint names, outputs that it has, kinds that come out."""

    architecture: str
    classes: list[str]
    outputs: int
    kinds: list[str]


# The unbiased and the multilingual checkpoint have outputs for identity terms behind their seven classes.
VARIANTS = {
    "original": Variant("bert", ORIGINAL, 6, ORIGINAL_KINDS),
    "unbiased": Variant("roberta", UNBIASED, 16, UNBIASED),
    "multilingual": Variant("xlm-roberta", UNBIASED, 16, UNBIASED),
    "original-small": Variant("albert", ORIGINAL, 6, ORIGINAL_KINDS),
    "unbiased-small": Variant("albert", UNBIASED, 16, UNBIASED),
}
FILES = ("config.json", "tokenizer.json")
PUBLIC = dict(sources.DETOXIFY)  # other tests put addresses on this machine in its place


class Loaded(NamedTuple):
    variant: Variant
    folder: Path
    model: Any
    options: dict[str, Any]
    store: ModelStore
    guard: Guard


def publish(hub: Hub, name: str, folder: Path, patch: pytest.MonkeyPatch) -> str:
    """Put a checkpoint and its base model on the hub, under the addresses that `DETOXIFY` then has."""
    checkpoint = f"{name}-release.ckpt"
    hub.put(f"/base/{name}/resolve/main", folder)
    hub.files[f"/releases/{checkpoint}"] = folder / checkpoint
    release = sources.Release(f"{hub.address}/releases/{checkpoint}", f"base/{name}")
    patch.setattr(sources, "DETOXIFY", {**sources.DETOXIFY, name: release})
    return checkpoint


@pytest.fixture(scope="module", params=VARIANTS)
def loaded(request: pytest.FixtureRequest, hub: Hub, bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    variant = VARIANTS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        checkpoint = f"{request.param}-release.ckpt"
        model = checkpoints.detoxify(variant.architecture, folder, variant.classes, variant.outputs, checkpoint)
        publish(hub, request.param, folder, patch)
        files = pins(folder, checkpoint, *FILES)
        options = {"backend": "detoxify", "model": {"source": f"detoxify:{request.param}", "files": files}}
        store = ModelStore(bundled, guards={"toxicity": options})
        store.pull()
        yield Loaded(variant, folder, model, options, store, made("toxicity", options, store))


def hits(guard: Guard, *texts: str) -> list[Sequence[Hit]]:
    results = ask(guard, *texts)
    assert not any(isinstance(result, Failure) for result in results)
    return [result for result in results if not isinstance(result, Failure)]


def test_scores_are_the_models_own(loaded: Loaded) -> None:
    texts = ["you are a nice person.", "stupid!", "the invoice is paid."]
    tokenizer = Tokenizer.from_file(str(loaded.folder / "tokenizer.json"))
    for text, found in zip(texts, hits(loaded.guard, *texts), strict=True):
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([tokenizer.encode(text).ids])).logits[0]
        expected = torch.sigmoid(logits)[: len(loaded.variant.kinds)].tolist()
        assert [hit.kind for hit in found] == loaded.variant.kinds
        assert [hit.score for hit in found] == pytest.approx(expected, abs=6e-4)
        assert all((part.start, part.end) == (0, len(text)) for hit in found for part in hit.ranges)


def test_detoxifys_own_loader_says_the_same(loaded: Loaded, tmp_path: Path) -> None:
    from detoxify.detoxify import get_model_and_tokenizer

    shutil.copytree(loaded.folder, tmp_path / "base")
    base = json.loads((tmp_path / "base" / "config.json").read_text())
    base |= {"id2label": {str(n): str(n) for n in range(loaded.variant.outputs)}, "label2id": None}
    (tmp_path / "base" / "config.json").write_text(json.dumps(base))
    content = torch.load(next(loaded.folder.glob("*.ckpt")), weights_only=True)
    arguments = content["config"]["arch"]["args"] | {"model_type": str(tmp_path / "base")}
    model, tokenizer = get_model_and_tokenizer(
        **arguments, state_dict=content["state_dict"], huggingface_config_path=str(tmp_path / "base")
    )
    text = "you are a nice person."
    with torch.no_grad():
        scores = torch.sigmoid(model.eval()(**tokenizer(text, return_tensors="pt"))[0])[0]
    (found,) = hits(loaded.guard, text)
    assert [hit.score for hit in found] == pytest.approx(scores[: len(found)].tolist(), abs=6e-4)


def test_the_addresses_are_detoxifys_own() -> None:
    from detoxify.detoxify import MODEL_URLS

    assert {name: release.checkpoint for name, release in PUBLIC.items()} == MODEL_URLS


def test_the_end_of_a_long_text_counts(loaded: Loaded) -> None:
    filler = "the weather is good. " * 40
    found = hits(loaded.guard, *(filler + f"{word} " * 60 for word in checkpoints.WORDS))
    assert any(part.end > len(filler) for each in found for hit in each for part in hit.ranges)
    windows = loaded.store.classifier(sources.spec_of(loaded.options["model"], "model")).score([filler])[0].ranges
    assert windows[0].start == 0
    assert windows[-1].end >= len(filler.rstrip())
    assert all(after.start <= before.end for before, after in itertools.pairwise(windows))


def test_a_batch_gives_what_single_texts_give_and_threads_agree(loaded: Loaded) -> None:
    texts = ["you are nice", "", "the weather is good. " * 30, "stupid \ud800 person", "😀 nice", "a\x00b"]
    together = ask(loaded.guard, *texts)
    assert together == [ask(loaded.guard, text)[0] for text in texts]
    with ThreadPoolExecutor(4) as pool:
        assert all(result == together for result in pool.map(lambda _: ask(loaded.guard, *texts), range(8)))


def test_an_oversized_text_fails_alone(loaded: Loaded) -> None:
    large, small = ask(loaded.guard, "a" * 131_073, "you are nice")
    assert large == Failure(FailureCode.INPUT_TOO_LARGE)
    assert not isinstance(small, Failure)


def test_a_built_model_says_what_was_decided_and_runs_offline(loaded: Loaded, offline: None) -> None:
    store = ModelStore(loaded.store.root, guards={"toxicity": loaded.options})
    model = store.verify()[-1]
    assert (model.state, model.unpinned) == (ModelState.READY, ())
    assert model.choice is not None
    assert model.choice.fp32_shift <= model.choice.fp32_bound == 1e-3
    assert (model.choice.int8_ms is None) == (loaded.variant.architecture == "albert")
    if model.choice.int8_shift is not None and model.choice.int8_shift > model.choice.int8_bound:
        assert model.choice.chosen == "fp32"
    guard = made("toxicity", loaded.options, store)
    assert ask(guard, "you are nice") == ask(loaded.guard, "you are nice")
    assert model.choice.chosen in guard.version


# ---------------------------------------------------------------- what is refused


@pytest.fixture
def published(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the small `original`, on the hub."""
    checkpoints.detoxify("bert", tmp_path / "original", ORIGINAL, 6, "original-release.ckpt")
    publish(hub, "original", tmp_path / "original", monkeypatch)
    return tmp_path / "original"


def options_for(files: dict[str, str | None]) -> dict[str, Any]:
    return {"backend": "detoxify", "model": {"source": "detoxify:original", "files": files}}


def store_of(root: Path, bundled: Path, options: dict[str, Any]) -> ModelStore:
    root.mkdir(exist_ok=True)
    if not (root / "all-minilm-l6-v2").exists():
        (root / "all-minilm-l6-v2").symlink_to(bundled / "all-minilm-l6-v2")
    return ModelStore(root, guards={"toxicity": options})


def test_what_is_missing_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ModelMissingError, match="tidegate models pull"):
        made("toxicity", {"backend": "detoxify"}, ModelStore(tmp_path))
    with pytest.raises(ModelMissingError, match="tidegate models pull"):
        made("toxicity", options_for({}), ModelStore(tmp_path))


def test_another_hash_is_refused(published: Path, bundled: Path, tmp_path: Path) -> None:
    files = pins(published, "original-release.ckpt", *FILES) | {"original-release.ckpt": "0" * 64}
    store = store_of(tmp_path / "store", bundled, options_for(files))
    with pytest.raises(ModelPullError, match="has the SHA-256"):
        store.pull()
    assert store.list()[-1].state is ModelState.MISSING


def test_first_use_is_trusted_only_when_told_and_shows_what_to_pin(
    published: Path, bundled: Path, tmp_path: Path
) -> None:
    store = store_of(tmp_path / "store", bundled, options_for({}))
    with pytest.raises(ModelPullError, match="--trust-first-use"):
        store.pull()
    store.pull(trust_first_use=True)
    model = store.list()[-1]
    assert model.files == pins(published, "original-release.ckpt", *FILES)
    pinned = store_of(tmp_path / "store", bundled, options_for(dict(model.files)))
    assert pinned.verify()[-1].state is ModelState.READY
    other = store_of(tmp_path / "store", bundled, options_for({**model.files, "config.json": "1" * 64}))
    assert other.list()[-1].state is ModelState.OUTDATED
    with pytest.raises(ModelMissingError, match="outdated"):
        made("toxicity", options_for({**model.files, "config.json": "1" * 64}), other)


def test_the_configuration_of_another_model_is_refused(published: Path, bundled: Path, tmp_path: Path) -> None:
    checkpoints.config("bert", published, 2, num_hidden_layers=1)
    store = store_of(tmp_path / "store", bundled, options_for({}))
    with pytest.raises(ConfigError, match=r"config\.json"):
        store.pull(trust_first_use=True)


def test_a_file_in_another_format_is_refused(published: Path, bundled: Path, tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(1)}, published / "original-release.ckpt")
    with pytest.raises(ConfigError, match="format"):
        store_of(tmp_path / "store", bundled, options_for({})).pull(trust_first_use=True)


class Planted:
    """A pickle that leaves a mark when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_pickle_that_runs_code_is_not_opened_without_a_pin(published: Path, bundled: Path, tmp_path: Path) -> None:
    torch.save({"config": Planted(tmp_path / "mark")}, published / "original-release.ckpt")
    with pytest.raises(ConfigError, match="pins its SHA-256"):
        store_of(tmp_path / "store", bundled, options_for({})).pull(trust_first_use=True)
    assert not (tmp_path / "mark").exists()


def test_a_pinned_checkpoint_may_hold_other_objects(published: Path, bundled: Path, tmp_path: Path) -> None:
    content = torch.load(published / "original-release.ckpt", weights_only=True)
    torch.save({**content, "made_by": Path("trainer")}, published / "original-release.ckpt")
    store = store_of(tmp_path / "store", bundled, options_for(pins(published, "original-release.ckpt", *FILES)))
    store.pull()
    assert store.list()[-1].state is ModelState.READY
