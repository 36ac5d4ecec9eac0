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
from multiprocessing.process import BaseProcess
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
        if not jobs:
            return []
        with self.lock:
            for _ in range(TRIES + 1):
                try:
                    if self._server is None:
                        self._start()
                    left = [one for one in enumerate(jobs) if one[0] not in outcomes]
                    self._connection.send_bytes(json.dumps(left).encode())
                    for _ in left:
                        index, *outcome = json.loads(self._connection.recv_bytes())
                        outcomes[index] = Outcome(*outcome)
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


def _fork(settings: Mapping[str, Any], control: Connection) -> tuple[BaseProcess, Connection]:
    """A worker, and the server's end of the pipe to it."""
    connection, theirs = Pipe()
    process = get_context("fork").Process(target=_work, args=(settings, control, theirs))
    process.start()
    theirs.close()
    return process, connection


def _work(settings: Mapping[str, Any], control: Connection, server: Connection) -> None:
    """What a worker does until the server is gone: one job at a time."""
    control.close()
    try:
        if limit := settings["memory_mb"] * 2**20:
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
    idle = [_fork(settings, control) for _ in range(settings["workers"])]
    busy: dict[Connection, Any] = {}  # (worker, what is asked, when it is late)
    waiting: deque[Sequence[Any]] = deque()  # (index, job, tries before)
    with contextlib.suppress(EOFError, ConnectionError):
        control.send_bytes(b"ready")
        while os.getppid() == parent:
            while waiting and idle:
                (process, connection), asked = idle.pop(), waiting.popleft()
                busy[connection] = process, asked, time.monotonic() + settings["seconds"]
                with contextlib.suppress(ConnectionError):  # one that died is seen at the end
                    connection.send_bytes(json.dumps(asked[1]).encode())
            if control in wait([control, *busy], 0.02 if busy else 2.0):
                waiting += [(*asked, 0) for asked in json.loads(control.recv_bytes())]
            for connection, (process, (index, job, tries), deadline) in [*busy.items()]:
                late, answer = not connection.poll(), None
                if late and time.monotonic() <= deadline:
                    continue
                del busy[connection]
                with contextlib.suppress(EOFError, ConnectionError):
                    answer = None if late else json.loads(connection.recv_bytes())
                if answer is None:
                    process.kill()  # changes nothing for one that is gone
                    process.join()
                    connection.close()
                    short = process.exitcode == _OUT_OF_MEMORY
                    process, connection = _fork(settings, control)
                    if late or short or tries + 1 == TRIES:
                        died = "timed out" if late else "out of memory" if short else "crashed"
                        answer = [None, "", died]
                    else:
                        waiting.appendleft((index, job, tries + 1))
                idle.append((process, connection))
                if answer is not None:
                    control.send_bytes(json.dumps([index, *answer]).encode())
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
