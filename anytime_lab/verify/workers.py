"""Worker processes with a hard limit of time and memory per job.

One fresh interpreter, the server, is started by `subprocess`, imports what the jobs need and forks
the workers: torch, CUDA, threads and a notebook's `__main__` stay out of them, and a worker that
dies is replaced within milliseconds. The server hands out the jobs of a batch and kills what is
late, even where it never returns to Python. Messages are JSON: reading one can never run anything.
Nobody is left behind when this process dies: the server then ends its whole process group.
"""

import atexit
import contextlib
import dataclasses
import functools
import json
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

START_SECONDS = 120.0  # for the server to import what it needs, on a machine under load
TRIES = 3  # of a job whose worker crashes or is killed by a hand, after which the job is at fault
JOBS_PER_WORKER = 5000  # caches of sympy grow; a fresh worker starts without them
_OUT_OF_MEMORY = 77  # exit code of a worker

Job = tuple[str, Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a job.

    died: "" or "timed out", "out of memory", "crashed". error: what the function raised, or "".
    """

    result: Any = None
    error: str = ""
    died: str = ""


@dataclass(kw_only=True, eq=False, config=ConfigDict(strict=True))
class GradingPool:
    """Run named functions in worker processes, in order, each job under a hard limit.

    Workers start when first needed and are replaced when they die. Any thread may call; calls
    wait for each other. A forked child of this process, or a copy, starts workers of its own.

    Args:
        workers: Processes that work at the same time.
        seconds: Wall-clock limit of a job; its process is killed then, the others go on.
        memory_mb: Address space of a worker, in MiB; 0 for no limit.
        preload: Modules that are imported once, before the first job.
        warm_up: `(function, arguments)` that is called once, before the first job.

    Attributes:
        lock: Held by a call in progress; its thread can take it again.

    Raises:
        ValueError: A setting is out of range.
    """

    workers: PositiveInt = 2
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3.0
    memory_mb: NonNegativeInt = 1024
    preload: list[str] = dataclasses.field(default_factory=list)
    warm_up: tuple[str, Any] | None = None

    def __post_init__(self) -> None:
        self._forget()
        _POOLS.add(self)

    def _forget(self) -> None:
        """Have no server, and a lock that nobody holds: as a fork of a process that has both."""
        self.lock: Any = threading.RLock()
        self._server: subprocess.Popen | None = None

    def __del__(self) -> None:
        if hasattr(self, "_server"):  # its settings were not refused
            self._end()

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(GradingPool, **dataclasses.asdict(self)), ()

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Run jobs and return their outcomes in the same order.

        Args:
            jobs: `("package.module:function", arguments)`; arguments and result pass as JSON.

        Raises:
            RuntimeError: The workers do not start; their own error is in the message.
        """
        outcomes: dict[int, Outcome] = {}
        with self.lock:
            for _ in range(TRIES + 1):
                try:
                    self._ask(jobs, outcomes)
                    return [outcomes[index] for index in range(len(jobs))]
                except BaseException as error:
                    # Ctrl-C, or a caller that gives up: leave no worker behind with half a job.
                    self._end()
                    if not isinstance(error, (EOFError, ConnectionError)):  # the server is gone
                        raise
        raise RuntimeError(
            f"the grading workers were killed {TRIES + 1} times in one batch, by a hand or by a "
            f"system short of memory."
        )

    def _ask(self, jobs: Sequence[Job], outcomes: dict[int, Outcome]) -> None:
        """Fill in the outcomes that are missing."""
        left = [(index, job) for index, job in enumerate(jobs) if index not in outcomes]
        if left and self._server is None:
            self._start()
        if left:
            self._connection.send_bytes(json.dumps(left).encode())
        for _ in left:
            index, *outcome = json.loads(self._connection.recv_bytes())
            outcomes[index] = Outcome(*outcome)

    def _start(self) -> None:
        paths = [str(Path(__file__).resolve().parents[2]), *(p or os.getcwd() for p in sys.path)]
        self._connection, theirs = Pipe()
        with theirs, tempfile.TemporaryFile() as errors:
            self._server = server = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, json.dumps(dataclasses.asdict(self))],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,  # what graded code prints is not a reply
                stderr=errors,
                start_new_session=True,  # Ctrl-C in the terminal is for the trainer alone
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
                    "PYTHONHASHSEED": "0",  # the order of sympy's sets, hence its verdicts
                    "CUDA_VISIBLE_DEVICES": "",
                },
            )
            theirs.close()
            with contextlib.suppress(EOFError, ConnectionError):
                if self._connection.poll(START_SECONDS):
                    self._connection.recv_bytes()
                    return
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(1.0)  # what it died of is known when it is gone
            code = server.poll()
            self._end()
            if code in (-signal.SIGKILL, -signal.SIGTERM):
                raise EOFError
            errors.seek(0)
            said = errors.read().decode("utf-8", "replace").strip()[-2000:]
            raise RuntimeError(
                f"the grading workers ended before their first job, or were not ready within "
                f"{START_SECONDS:.0f} s. They said:\n{said or '(nothing)'}"
            )

    def close(self) -> None:
        """End all workers, after the call in progress. The pool can be used again."""
        with self.lock:
            self._end()

    def _end(self) -> None:
        """Kill the server, if there is one, with all that it started."""
        server, self._server = self._server, None
        if server is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(server.pid, signal.SIGKILL)
            self._connection.close()
            server.wait()

    def processes(self) -> list[int]:
        """Process id of the server, whose children the workers are."""
        return [self._server.pid] if self._server else []


_POOLS: weakref.WeakSet[GradingPool] = weakref.WeakSet()
atexit.register(lambda: [pool._end() for pool in _POOLS])
os.register_at_fork(after_in_child=lambda: [pool._forget() for pool in _POOLS])


class _Worker:
    """A process that does one job at a time, as the server sees it; replaced when it dies.

    job: (index, job) in hand, or None. tries: of that job so far. deadline: when it is late.
    """

    def __init__(self, settings: Mapping[str, Any], control: Connection):
        self.settings, self.control = settings, control
        self.job: Sequence[Any] | None = None
        self._fork()

    def _fork(self) -> None:
        self.connection, theirs = Pipe()
        self.process = get_context("fork").Process(target=self._work, args=(theirs,))
        self.process.start()
        theirs.close()

    def begin(self, job: Sequence[Any], tries: int = 1) -> None:
        """Take a job in hand."""
        self.job, self.tries = job, tries
        self.deadline = time.monotonic() + self.settings["seconds"]
        with contextlib.suppress(ConnectionError):  # one that died is seen at the end
            self.connection.send_bytes(json.dumps(job[1]).encode())

    def end(self) -> None:
        """Tell the outcome of the job, or try it again: it was answered, or is late, or died."""
        late, answer = not self.connection.poll(), None
        with contextlib.suppress(EOFError, ConnectionError):
            answer = None if late else json.loads(self.connection.recv_bytes())
        if answer is None:
            self.process.kill()  # changes nothing for one that is gone
            self.process.join()
            self.connection.close()
            short = self.process.exitcode == _OUT_OF_MEMORY
            self._fork()
            if not late and not short and self.tries < TRIES:
                self.begin(self.job, self.tries + 1)
                return
            died = "timed out" if late else "out of memory" if short else "crashed"
            answer = [None, "", died]
        index, self.job = self.job[0], None
        self.control.send_bytes(json.dumps([index, *answer]).encode())

    def _work(self, server: Connection) -> None:
        """What the process does until the server is gone."""
        self.control.close()
        try:
            if limit := self.settings["memory_mb"] * 2**20:
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            for _ in range(JOBS_PER_WORKER):
                call, arguments = json.loads(server.recv_bytes())
                try:
                    answer = json.dumps([pkgutil.resolve_name(call)(*arguments)])
                except MemoryError:
                    raise
                except Exception as error:
                    answer = json.dumps([None, f"{type(error).__name__}: {str(error)[:200]}"])
                server.send_bytes(answer.encode())
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)
        except (EOFError, ConnectionError):  # nobody listens any more
            return


def main() -> None:
    """The server: have workers do the jobs that are asked for, until the trainer is gone."""
    settings = json.loads(sys.argv[1])
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    control = Connection(os.dup(0))
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    for module in settings["preload"]:
        pkgutil.resolve_name(module)
    if settings["warm_up"]:
        pkgutil.resolve_name(settings["warm_up"][0])(*settings["warm_up"][1])
    os.dup2(nowhere, 2)
    workers = [_Worker(settings, control) for _ in range(settings["workers"])]
    waiting: deque[Sequence[Any]] = deque()
    with contextlib.suppress(EOFError, ConnectionError):
        control.send_bytes(b"ready")
        while os.getppid() == parent:
            for worker in workers:
                if waiting and worker.job is None:
                    worker.begin(waiting.popleft())
            busy = {worker.connection: worker for worker in workers if worker.job is not None}
            heard = wait([control, *busy], 0.02 if busy else 2.0)
            if control in heard:
                waiting.extend(json.loads(control.recv_bytes()))
            for connection, worker in busy.items():
                if connection in heard or time.monotonic() > worker.deadline:
                    worker.end()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
