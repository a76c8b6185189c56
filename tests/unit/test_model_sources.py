"""Model specs and what fetches them, from a hub on this machine, a folder and a wheel; nothing here needs torch."""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from guards.errors import ConfigError, ModelBuildError, ModelMissingError
from guards.guard import build
from guards.models import ModelPullError, ModelSpec, ModelState, ModelStore, convert
from guards.models.sources import DETOXIFY, spec_of, specs_in
from streams.cli import app
from tests.hub import Hub

CONTENT = {"config.json": b"{}", "tokenizer.json": b"[]", "model.safetensors": b"w" * 3_000_000}
PINS = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub().serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address + "/")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        hub.files |= {f"/acme/toxic/resolve/abc123/{name}": content for name, content in CONTENT.items()}
        yield hub


@pytest.fixture
def root(model_store: ModelStore, tmp_path: Path) -> Path:
    """A model root with the bundled encoder in it."""
    made = tmp_path / "models"
    made.mkdir()
    (made / "all-minilm-l6-v2").symlink_to(model_store.root / "all-minilm-l6-v2")
    return made


def on_hub(**more: Any) -> dict[str, Any]:
    return {"source": "hf:acme/toxic", "revision": "abc123", "files": PINS, **more}


def store(root: Path, model: dict[str, Any]) -> ModelStore:
    return ModelStore(root, guards={"toxicity": {"backend": "hf-classifier", "model": model}})


# ---------------------------------------------------------------- specs


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"source": "ftp://x"}, "begins with none of"),
        ({"source": "detoxify:tiny"}, "Detoxify has original"),
        ({"source": "folder:/x", "files": {"../../etc/passwd": None}}, "within the model's folder"),
        ({"source": "folder:/x", "files": {"a": "abc"}}, "64 hex digits"),
        ({"source": "folder:/x", "window_tokens": 2}, "window_tokens"),
        ({"sorce": "folder:/x"}, r"guards\.toxicity\.model\.sorce: unknown key; did you mean 'source'"),
        ("hf:acme/toxic", "expected a mapping"),
    ],
)
def test_a_bad_spec_is_refused_with_its_place(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec_of(spec, "guards.toxicity.model")


def test_each_source_and_revision_has_a_folder_of_its_own() -> None:
    specs = [
        ModelSpec("hf:acme/toxic"),
        ModelSpec("hf:acme/toxic", revision="abc123"),
        ModelSpec("https://example.org/toxic"),
        ModelSpec("folder:/srv/acme/toxic"),
        *(ModelSpec(f"detoxify:{variant}") for variant in DETOXIFY),
    ]
    assert len({spec.name for spec in specs}) == len(specs)
    assert all("/" not in spec.name and spec.name[0] != "." for spec in specs)


def test_a_profile_names_its_models_once() -> None:
    guards = {"toxicity": {"model": on_hub()}, "injection": {"model": on_hub()}, "pii": {"phone_regions": ["US"]}}
    specs = specs_in(guards, {"model": {"source": "folder:/x"}})
    assert [(spec.source, spec.kind) for spec in specs] == [("hf:acme/toxic", "classifier"), ("folder:/x", "encoder")]


# ---------------------------------------------------------------- fetching


def test_a_pinned_model_is_fetched_once_and_stays_readable_offline(
    hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, float]] = []
    made = store(root, on_hub())
    made.pull(lambda step, fraction: steps.append((step, fraction)), build=False)
    model = made.verify()[-1]
    assert (model.state, model.files, model.unpinned) == (ModelState.UNBUILT, PINS, ())
    assert {path: (model.path / path).read_bytes() for path in CONTENT} == CONTENT
    assert [f for step, f in steps if step == "model.safetensors"][-1] == 1.0
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    store(root, on_hub()).pull(build=False)
    assert len(hub.asked) == len(CONTENT)
    with pytest.raises(ModelMissingError, match="tidegate models build"):
        build(["toxicity"], {"toxicity": {"backend": "hf-classifier", "model": on_hub()}}, made)


def test_another_hash_leaves_nothing(hub: Hub, root: Path) -> None:
    hub.files["/acme/toxic/resolve/abc123/tokenizer.json"] = b"[1]"
    made = store(root, on_hub())
    with pytest.raises(ModelPullError, match=r"tokenizer\.json has the SHA-256 .* pinned is"):
        made.pull(build=False)
    assert made.list()[-1].state is ModelState.MISSING
    assert not list(root.glob(".making-*"))


def test_an_unpinned_file_is_taken_only_when_told(hub: Hub, root: Path) -> None:
    loose = on_hub(files={**PINS, "config.json": None})
    made = store(root, loose)
    with pytest.raises(ModelPullError, match=r"no SHA-256 is pinned for config\.json.*--trust-first-use"):
        made.pull(build=False)
    assert hub.asked == []
    made.pull(trust_first_use=True, build=False)
    assert made.list()[-1].files == PINS
    # From then on the store holds to what came first.
    (made.list()[-1].path / "config.json").write_bytes(b"[]")
    assert made.verify()[-1].state is ModelState.DAMAGED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"revision": "gone"}, "answers 404"),
        ({"source": "http://127.0.0.1:9/models"}, "cannot be read"),
        ({"source": "folder:/no/such/folder"}, "is not there"),
    ],
)
def test_what_cannot_be_fetched_says_why(hub: Hub, root: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelPullError, match=message):
        store(root, on_hub(**change)).pull(build=False)


def test_the_token_goes_to_the_hub_and_to_no_other_host(hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = "/acme/toxic/resolve/abc123/model.safetensors"
    hub.gated = {large}
    with pytest.raises(ModelPullError, match="answers 401; a gated model needs HF_TOKEN"):
        store(root, on_hub()).pull(build=False)
    monkeypatch.setenv("HF_TOKEN", "secret")
    with Hub().serving() as other:
        other.files["/blob"] = CONTENT["model.safetensors"]
        hub.files[large] = f"{other.address}/blob"
        store(root, on_hub()).pull(build=False)
        assert (large, "Bearer secret") in hub.asked
        assert other.asked == [("/blob", None)]


def test_a_web_folder_and_a_local_folder_serve_too(hub: Hub, root: Path, tmp_path: Path) -> None:
    for name, content in CONTENT.items():
        hub.files[f"/plain/{name}"] = content
        (tmp_path / name).write_bytes(content)
    for source in (f"{hub.address}/plain", f"folder:{tmp_path}"):
        made = store(root, {"source": source, "files": PINS})
        made.pull(build=False)
        assert made.verify()[-1].state is ModelState.UNBUILT


def test_a_wheel_gives_the_files_of_a_folder_in_it(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "acme_toxic-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("acme_toxic-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: acme-toxic\nVersion: 1.0\n")
        wheel.writestr(
            "acme_toxic-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        for name, content in CONTENT.items():
            wheel.writestr(f"acme_toxic/model/{name}", content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    made = store(root, {"source": "wheel:acme-toxic==1.0#acme_toxic/model", "files": PINS})
    made.pull(build=False)
    assert made.verify()[-1].state is ModelState.UNBUILT
    absent = store(root, {"source": "wheel:acme-toxic==1.0#acme_toxic/other", "files": PINS})
    with pytest.raises(ModelPullError, match=r"the wheel has no config\.json"):
        absent.pull(build=False)


# ---------------------------------------------------------------- the command


def tidegate(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def profile(hub: Hub, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TIDEGATE_MODELS", str(root))
    path = tmp_path / "mine.yaml"
    model = {"source": "hf:acme/toxic", "revision": "abc123"}
    path.write_text(json.dumps({"guards": {"toxicity": {"backend": "hf-classifier", "model": model}}}))
    return str(path)


def test_the_command_shows_what_to_pin(profile: str) -> None:
    refused = tidegate("models", "pull", "--no-build", "--profile", profile)
    assert refused.exit_code == 3
    assert "--trust-first-use" in refused.stderr
    taken = tidegate("models", "pull", "--no-build", "--trust-first-use", "--profile", profile)
    assert taken.exit_code == 0
    assert all(f"{name}: {pin}" in taken.stderr for name, pin in PINS.items())
    listed = tidegate("models", "list", "--json", "--profile", profile)
    assert listed.exit_code == 1
    assert "run `tidegate models build`" in listed.stderr
    assert json.loads(listed.stdout)[-1]["files"] == PINS
    assert tidegate("models", "list").exit_code == 0  # the embedded profile has no such model


def test_building_without_torch_keeps_what_was_fetched(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    refused = tidegate("models", "pull", "--trust-first-use", "--profile", profile)
    assert refused.exit_code == 2
    assert "pip install 'tidegate[standard]'" in refused.stderr
    assert json.loads(tidegate("models", "list", "--json", "--profile", profile).stdout)[-1]["state"] == "unbuilt"


def test_a_build_that_is_not_the_model_ends_with_exit_code_1(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def differs(*_: object) -> None:
        raise ModelBuildError("hf:acme/toxic: the fp32 graph is not the model")

    monkeypatch.setattr(convert, "build", differs)
    result = tidegate("models", "pull", "--trust-first-use", "--profile", profile)
    assert result.exit_code == 1
    assert "is not the model" in result.stderr
    assert json.loads(tidegate("models", "list", "--json", "--profile", profile).stdout)[-1]["state"] == "unbuilt"


def test_the_encoders_precision_can_come_from_the_environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_MODELS", str(root))
    monkeypatch.setenv("TIDEGATE_ENCODER", '{"precision": "auto"}')
    assert json.loads(tidegate("models", "list", "--json").stdout)[0]["state"] == "unbuilt"  # int8 is not there
    monkeypatch.setenv("TIDEGATE_ENCODER", '{"precision": "fp32"}')
    assert tidegate("models", "list").exit_code == 0
