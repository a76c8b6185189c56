"""Threads that run guards, and survive guards that never return.

A thread cannot be killed. `concurrent.futures` would lose it for good and wait for it at exit; here a thread that
still runs long after nobody waits is written off and replaced, up to a bound, and never holds up the process's end.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final

__all__ = ["GuardThreads"]

LOST_AFTER_S: Final = 1.0
"""A job that runs so long after it was given up has lost its thread: a slow guard ends before, a hanging one never."""

LOST_MAX: Final = 16
"""Threads that may hang before replacing them stops: each holds its text and a stack, and may burn a core."""


class _Job:
    __slots__ = ("begun", "done", "future", "given_up", "lost", "loop", "work")

    def __init__(self, work: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.work = work
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.begun = False
        self.done = False
        self.given_up = False
        self.lost = False


class GuardThreads:
    """``count`` daemon threads with one queue."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._lost = 0
        self._by_future: dict[asyncio.Future[Any], _Job] = {}
        for _ in range(count):
            self._add_thread()

    @property
    def lost(self) -> int:
        """How many threads hang in a guard now."""
        return self._lost

    @property
    def exhausted(self) -> bool:
        """Whether so many hang that no more are replaced: only a restart helps."""
        return self._lost >= LOST_MAX

    def submit(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run ``work`` in a thread; never blocks."""
        job = _Job(work, asyncio.get_running_loop())
        self._by_future[job.future] = job
        job.future.add_done_callback(lambda future: self._by_future.pop(future, None))
        self._jobs.put(job)
        return job.future

    def give_up(self, future: asyncio.Future[Any]) -> None:
        """Nobody waits for this any more: if it has not begun it never will, if it hangs its thread is replaced."""
        job = self._by_future.pop(future, None)
        future.cancel()
        if job is None:
            return
        with self._lock:
            job.given_up = True
            running = job.begun and not job.done
        if running:
            job.loop.call_later(LOST_AFTER_S, self._write_off, job)

    def stop(self) -> None:
        """Let idle threads end; does not wait for those that hang."""
        for _ in range(self._count):
            self._jobs.put(None)

    def _write_off(self, job: _Job) -> None:
        with self._lock:
            if job.done or self._lost >= LOST_MAX:
                return
            job.lost = True
            self._lost += 1
        self._add_thread()

    def _add_thread(self) -> None:
        threading.Thread(target=self._run, name="guards", daemon=True).start()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            with self._lock:
                if job.given_up:
                    continue
                job.begun = True
            result: Any = None
            error: Exception | None = None
            try:
                result = job.work()
            except Exception as raised:
                error = raised
            except BaseException as raised:  # a guard that calls sys.exit() must not take the thread with it
                error = RuntimeError(type(raised).__name__)
            with self._lock:
                job.done = True
                if job.lost:  # another thread has taken this one's place
                    self._lost -= 1
                    return
            if not job.given_up:
                _tell(job, result, error)
            del job, result, error  # hold no user's text while waiting


def _tell(job: _Job, result: Any, error: Exception | None) -> None:
    def settle() -> None:
        if job.future.done():
            return
        if error is not None:
            job.future.set_exception(error)
        else:
            job.future.set_result(result)

    if not job.loop.is_closed():
        job.loop.call_soon_threadsafe(settle)
