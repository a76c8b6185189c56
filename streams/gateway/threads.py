"""Threads that run guards, and survive guards that never return.

A thread cannot be killed. `concurrent.futures` would lose it for good and wait for it at exit; here a thread that
still runs long after nobody waits is written off and replaced, up to a bound, and never holds up the process's end.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final

__all__ = ["GuardThreads"]

LOST_AFTER_S: Final = 1.0
"""A job that runs so long after it was given up has lost its thread: a slow guard ends before, a hanging one never."""

LOST_MAX: Final = 16
"""Threads that may hang before replacing them stops: each holds its text and a stack, and may burn a core."""


class _Job:
    __slots__ = ("begun", "done", "future", "given_up", "loop", "lost", "turn_s", "work")

    def __init__(self, work: Callable[[], Any], ends_s: float, loop: asyncio.AbstractEventLoop) -> None:
        now_s = perf_counter()
        self.work = work
        self.turn_s = now_s + (ends_s - now_s) / 2
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.begun = False
        self.done = False
        self.given_up = False
        self.lost = False


class GuardThreads:
    """``count`` daemon threads with one queue.

    First come, first served, until the oldest job has waited for half of its time; from then on the newest goes first.
    When more comes than can be judged in time, those that are judged then have all of theirs; a fair queue would let
    every single one begin too late.
    """

    def __init__(self, count: int) -> None:
        self._queue: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._lost = 0
        self._threads: set[threading.Thread] = set()
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

    def submit(self, work: Callable[[], Any], ends_s: float) -> asyncio.Future[Any]:
        """Run ``work`` in a thread, to be of use before ``ends_s`` (`time.perf_counter` seconds); never blocks."""
        job = _Job(work, ends_s, asyncio.get_running_loop())
        self._by_future[job.future] = job
        job.future.add_done_callback(lambda future: self._by_future.pop(future, None))
        with self._changed:
            self._queue.append(job)
            self._changed.notify()
        return job.future

    def give_up(self, future: asyncio.Future[Any]) -> None:
        """Nobody waits for this any more: if it has not begun it never will, if it hangs its thread is replaced."""
        job = self._by_future.pop(future, None)
        future.cancel()
        if job is None:
            return
        with self._changed:
            job.given_up = True
            running = job.begun and not job.done
        if running:
            job.loop.call_later(LOST_AFTER_S, self._write_off, job)

    async def stop(self, timeout_s: float) -> int:
        """Let the threads end, within ``timeout_s``. Returns how many have not: they hang in a guard."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        return await asyncio.to_thread(self._join, timeout_s)

    def _join(self, timeout_s: float) -> int:
        ends_s = perf_counter() + timeout_s
        for thread in list(self._threads):
            thread.join(max(0.0, ends_s - perf_counter()))
        return sum(thread.is_alive() for thread in list(self._threads))

    def _write_off(self, job: _Job) -> None:
        with self._changed:
            if job.done or self._stopping or self._lost >= LOST_MAX:
                return
            job.lost = True
            self._lost += 1
        self._add_thread()

    def _add_thread(self) -> None:
        thread = threading.Thread(target=self._run, name="guards", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _run(self) -> None:
        while (job := self._take()) is not None:
            result: Any = None
            error: Exception | None = None
            try:
                result = job.work()
            except Exception as raised:
                error = raised
            except BaseException as raised:  # a guard that calls sys.exit() must not take the thread with it
                error = RuntimeError(type(raised).__name__)
            with self._changed:
                job.done = True
                replaced = job.lost
                if replaced:
                    self._lost -= 1
            if not job.given_up:
                _tell(job, result, error)
            if replaced:
                break
            del job, result, error  # hold no user's text while waiting
        self._threads.discard(threading.current_thread())

    def _take(self) -> _Job | None:
        """The next job; waits for one. ``None``: stop."""
        with self._changed:
            while True:
                while self._queue and self._queue[0].given_up:
                    self._queue.popleft()
                if self._stopping:
                    return None
                if self._queue:
                    late = perf_counter() > self._queue[0].turn_s
                    job = self._queue.pop() if late else self._queue.popleft()
                    if job.given_up:
                        continue
                    job.begun = True
                    return job
                self._changed.wait()


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
