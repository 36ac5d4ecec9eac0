"""A pool of worker processes with a hard limit of time and memory per job.

Workers are started by `subprocess`, never forked from this process and never by
`multiprocessing`: torch, CUDA, threads and a notebook's `__main__` stay out of them.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anytime_lab.verify import frames

START_SECONDS = 120.0  # for a worker to import what it needs, on a machine under load
GRACE_SECONDS = 2.0  # after which a job that outlived its own timer is ended from here
KILLED_STARTS = 3  # in a row, by a hand or a system short of memory, after which to give up
CRASHES = 2  # of a job's worker, after which the job is at fault
KILLS = 2  # of a job's worker by a hand, beyond one for each that may have been killed at once


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    died: "" or "timed out", "out of memory", "crashed". error: what the function raised, or "".
    """

    result: Any = None
    died: str = ""
    error: str = ""


class GradingPool:
    """Run named functions in worker processes, in order, each job under a hard limit.

    Workers start when first needed and are replaced when they die. Any thread may call; calls
    wait for each other. In a forked child of this process the pool starts workers of its own.

    Args:
        workers: Processes that work at the same time.
        seconds: Wall-clock limit of a job; its process is killed then, the others go on.
        memory_mb: Address space of a worker, in MiB; 0 for no limit.
        preload: Modules that workers import once, before the first job.
        warm_up: `(function, arguments)` that workers call once, before the first job.

    Raises:
        ValueError: A setting is out of range, or the platform has no POSIX processes.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        seconds: float = 3.0,
        memory_mb: int = 1024,
        preload: Sequence[str] = (),
        warm_up: tuple[str, Sequence[Any]] | None = None,
    ):
        whole = isinstance(workers, int) and isinstance(memory_mb, int)
        if not (whole and isinstance(seconds, int | float)) or (
            workers < 1 or not 0 < seconds < float("inf") or memory_mb < 0
        ):
            raise ValueError(
                f"workers={workers!r}, seconds={seconds!r}, memory_mb={memory_mb!r}; expected at "
                f"least 1 worker, seconds above 0 and memory_mb of 0 (no limit) or more."
            )
        if os.name != "posix":
            raise ValueError(
                "grading workers need POSIX pipes and limits; on Windows, run under WSL."
            )
        self.workers, self.seconds, self.memory_mb = workers, seconds, memory_mb
        self.preload, self.warm_up = tuple(preload), warm_up
        self._start_empty()
        in_forked_child(self._start_empty)

    def _start_empty(self) -> None:
        """No workers, and locks that nobody holds; a forked child leaves the parent's alone."""
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._killed_starts = 0
        self._pid = os.getpid()
        self._finalizer = weakref.finalize(self, _end_all, self._workers, self._pid)

    def __getstate__(self) -> dict[str, Any]:
        """Settings only: a copy, pickled or deep, starts workers of its own."""
        hidden = ("_lock", "_workers", "_killed_starts", "_pid", "_finalizer")
        return {name: value for name, value in self.__dict__.items() if name not in hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_empty()
        in_forked_child(self._start_empty)

    def run(self, jobs: Sequence[tuple[str, Sequence[Any]]]) -> list[Outcome]:
        """Run jobs and return their outcomes in the same order."""
        outcomes: list[Outcome | None] = [None] * len(jobs)
        with contextlib.closing(self.stream(jobs)) as stream:
            for index, outcome in stream:
                outcomes[index] = outcome
        return outcomes

    def stream(self, jobs: Sequence[tuple[str, Sequence[Any]]]) -> Iterator[tuple[int, Outcome]]:
        """Run jobs and yield `(index, outcome)` as they finish.

        Other calls wait until the stream is closed: use it under `contextlib.closing`.

        Args:
            jobs: `("package.module:function", arguments)`; arguments and result pass as JSON.

        Raises:
            RuntimeError: A worker does not start; its own error is in the message.
        """
        if not jobs:
            return
        with self._lock:
            try:
                yield from self._stream(jobs)
            except BaseException:
                # Ctrl-C, or a caller that gives up: leave no worker behind with half a job.
                _end_all(self._workers, self._pid)
                raise

    def close(self) -> None:
        """End all workers, after the call in progress. The pool can be used again."""
        with self._lock:
            _end_all(self._workers, self._pid)

    def processes(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    def _stream(self, jobs: Sequence[tuple[str, Sequence[Any]]]) -> Iterator[tuple[int, Outcome]]:
        waiting = deque(range(len(jobs)))
        deaths: Counter[tuple[int, str]] = Counter()
        most = {"crashed": CRASHES, "killed": self.workers + KILLS}
        left = len(jobs)
        while len(self._workers) < min(self.workers, len(jobs)):
            self._workers.append(self._spawn())
        while left:
            for worker in self._workers:
                if worker.ready and worker.job is None and waiting:
                    index = waiting.popleft()
                    call, arguments = jobs[index]
                    message = {"id": index, "call": call, "args": list(arguments)}
                    worker.give(index, message, self.seconds + GRACE_SECONDS)
            for worker, message in self._next_messages():
                index, outcome = worker.settle(message)
                if index is None:
                    continue
                if outcome.died in most:
                    deaths[index, outcome.died] += 1
                    if deaths[index, outcome.died] < most[outcome.died]:
                        waiting.appendleft(index)
                        continue
                    outcome = Outcome(died="crashed")
                left -= 1
                yield index, outcome

    def _next_messages(self) -> list[tuple["_Worker", dict[str, Any]]]:
        """Messages that came in; replaces workers that ended or outlived their time."""
        now = time.monotonic()
        next_deadline = min(worker.deadline for worker in self._workers)
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker.output, selectors.EVENT_READ, worker)
            events = selector.select(max(0.0, min(next_deadline - now, 60.0)))
        messages = []
        for selected, _ in events:
            messages += [(selected.data, message) for message in selected.data.read()]
        now = time.monotonic()
        for place, worker in enumerate(self._workers):
            if not worker.ended and now < worker.deadline:
                continue
            if any(w is worker and "ready" in message for w, message in messages):
                self._killed_starts = 0
            elif not worker.ready:
                self._killed_starts += 1
                if not worker.was_killed() or self._killed_starts > KILLED_STARTS:
                    raise RuntimeError(worker.failure(now))
            if worker.job is not None and not any(
                w is worker and message.get("id") == worker.job for w, message in messages
            ):
                cause = "killed" if worker.ended else "timed out"
                messages.append((worker, {"id": worker.job, "died": cause}))
            worker.end()
            self._workers[place] = self._spawn()
        return messages

    def _spawn(self) -> "_Worker":
        config = {
            "seconds": self.seconds,
            "memory_bytes": self.memory_mb * 2**20,
            "preload": self.preload,
            "warm_up": self.warm_up,
        }
        return _Worker(json.dumps(config))


def in_forked_child(renew: Callable[[], None]) -> None:
    """Have a bound method called in every forked child, as long as its object lives.

    A lock that a thread of the parent held while it forked is never released in the child.
    """
    reference = weakref.WeakMethod(renew)

    def renew_if_alive() -> None:
        method = reference()
        if method is not None:
            method()

    os.register_at_fork(after_in_child=renew_if_alive)


class _Worker:
    """One worker process as seen from here: its pipes, its job, its deadline."""

    def __init__(self, config: str):
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `end`)
        here = str(Path(__file__).resolve().parents[2])
        paths = [here, *(path or os.getcwd() for path in sys.path)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
            "PYTHONHASHSEED": "0",  # the order of sympy's sets, hence its verdicts, must not vary
            "CUDA_VISIBLE_DEVICES": "",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "anytime_lab.verify.worker", config],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            bufsize=0,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal is for the trainer alone
        )
        self.input, self.output = (
            self.process.stdin.fileno(),
            self.process.stdout.fileno(),
        )
        os.set_blocking(self.input, False)
        os.set_blocking(self.output, False)
        self.buffer = bytearray()
        self.ready = self.ended = False
        self.job: int | None = None
        self.deadline = time.monotonic() + START_SECONDS

    def give(self, index: int, message: dict[str, Any], seconds: float) -> None:
        """Send a job; a worker that does not take it in time counts as ended."""
        self.job, self.deadline = index, time.monotonic() + seconds
        data = memoryview(frames.encode(message))
        with selectors.DefaultSelector() as selector:
            selector.register(self.input, selectors.EVENT_WRITE)
            while data:
                if not selector.select(max(0.0, self.deadline - time.monotonic())):
                    return  # the deadline has passed; the next look at it ends the worker
                try:
                    data = data[os.write(self.input, data) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError:
                    self.ended = True
                    return

    def read(self) -> list[dict[str, Any]]:
        """Whole messages that have arrived."""
        try:
            while chunk := os.read(self.output, 1 << 16):
                self.buffer += chunk
            self.ended = True
        except BlockingIOError:
            pass
        messages = []
        while (message := frames.take(self.buffer)) is not None:
            messages.append(message)
        return messages

    def settle(self, message: dict[str, Any]) -> tuple[int | None, Outcome]:
        """(job, outcome) that a message reports; (None, …) if it is about no job in hand."""
        if "ready" in message:
            self.ready, self.deadline = True, float("inf")
            return None, Outcome()
        if self.job is None or message["id"] != self.job:
            return None, Outcome()  # a server that died between two jobs
        self.job, self.deadline = None, float("inf")
        return message["id"], Outcome(
            message.get("result"), message.get("died", ""), message.get("error", "")
        )

    def was_killed(self) -> bool:
        """Whether a signal from outside ended the process."""
        if not self.ended:
            return False
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(1.0) in (-signal.SIGKILL, -signal.SIGTERM)
        return False

    def failure(self, now: float) -> str:
        """Why a worker that never got ready did not."""
        self.errors.seek(0)
        said = self.errors.read().decode("utf-8", "replace").strip()[-2000:]
        took = f"did not start within {START_SECONDS:.0f} s" if now >= self.deadline else "ended"
        return f"a grading worker {took} before its first job. It said:\n{said or '(nothing)'}"

    def end(self) -> None:
        """Kill the worker with all it started, and reap it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            with contextlib.suppress(OSError):
                stream.close()
        self.process.wait()


def _end_all(workers: list[_Worker], pid: int) -> None:
    """End workers, unless this is a forked child and they belong to the parent."""
    while workers and os.getpid() == pid:
        workers.pop().end()
