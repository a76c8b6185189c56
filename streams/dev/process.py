"""A child process with a log of its own, that ends when its parent does."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from guards.errors import GuardsError

__all__ = ["Service", "StartError", "run_folder"]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

POLL_S = 0.01
"""A server answers tens of milliseconds after its start: asking more often gains nothing, less often is felt."""

TAIL_BYTES = 4_096
"""How much of the end of a log is looked at for a message."""


class StartError(GuardsError):
    """A process did not come up; the text has the end of its log and where the rest lies."""


class Service:
    """One process: `spawn`, `wait_until_answers`, `stop`; may be spawned again after it has ended.

    Standard output and error go to ``log``, emptied at the first spawn and appended to at later ones. The process runs
    in a session of its own, so that a terminal's Ctrl-C reaches only the parent, which stops its children in order. On
    Linux the kernel kills it when the *thread* that spawned it ends, however it ends: spawn from the main thread. Other
    systems have nothing like it; there a parent that is killed with SIGKILL leaves its children behind.

    ``answers`` says whether the process can be used; ``grace_s`` is how long it may take to stop before it is killed.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        answers: Callable[[], bool] = lambda: True,
        stop_signal: signal.Signals = signal.SIGTERM,
        grace_s: float = 5.0,
    ) -> None:
        self.name = name
        self.log = log
        self.grace_s = grace_s
        self._argv = list(argv)
        self._env = None if env is None else dict(env)
        self._answers = answers
        self._stop_signal = stop_signal
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def exit_code(self) -> int | None:
        """``None`` while it runs or before it was spawned; negative: the signal that ended it."""
        return None if self._process is None else self._process.poll()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def spawn(self) -> None:
        """Start the process; returns before it answers. Raises `StartError` when it cannot be run at all."""
        if self.running:
            raise StartError(f"{self.name} runs already (pid {self.pid})")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        parent = os.getpid()
        with self.log.open("wb" if self._process is None else "ab") as log:
            try:
                self._process = subprocess.Popen(  # noqa: S603 (the argv is ours)
                    self._argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._env,
                    start_new_session=True,
                    preexec_fn=None if _LIBC is None else lambda: _die_with(parent),
                )
            except OSError as error:
                raise StartError(f"{self.name} cannot be run: {error}") from error

    def wait_until_answers(self, timeout_s: float) -> None:
        """Blocks. Raises `StartError` when the process ends or ``timeout_s`` passes first."""
        end = time.monotonic() + timeout_s
        while not self._answers():
            if not self.running:
                raise StartError(f"{self.name} {self.how_it_ended()}{self.tail()}")
            if time.monotonic() > end:
                raise StartError(f"{self.name} does not answer after {timeout_s:g} s{self.tail()}")
            time.sleep(POLL_S)
        if not self.running:  # then it was somebody else who answered on its port
            raise StartError(f"{self.name} {self.how_it_ended()}{self.tail()}")

    def ask_to_stop(self) -> None:
        if self.running:
            assert self._process is not None
            self._process.send_signal(self._stop_signal)

    def kill(self) -> None:
        """At once; returns when it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> bool:
        """Ask, wait ``grace_s``, then kill. Blocks; idempotent. False when it had to be killed."""
        if self._process is None:
            return True
        self.ask_to_stop()
        try:
            self._process.wait(self.grace_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        return True

    def how_it_ended(self) -> str:
        code = self.exit_code
        if code is None:
            return "runs"
        return f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"

    def tail(self, lines: int = 12) -> str:
        """The end of the log for a message, starting on a new line, and where the log lies."""
        with self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            last = file.read().decode("utf-8", "replace").splitlines()[-lines:]
        return "".join(f"\n  | {line}" for line in last) + f"\n  its log: {self.log}"


def run_folder(state: Path, port: int) -> Path:
    """Where one `tidegate up` keeps the logs of its children: one folder per sidecar port."""
    folder = state / f"run-{port}"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _die_with(parent: int) -> None:
    """Runs in the child between fork and exec; the setting survives the exec."""
    assert _LIBC is not None
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent was gone before the setting held
        os._exit(1)
