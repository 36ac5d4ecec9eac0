"""Worker processes with a hard limit of time and memory per job.

One fresh interpreter, the server, is started by `subprocess`, imports what the jobs need and forks
the workers: torch, CUDA, threads and a notebook's `__main__` stay out of them, and a worker that
dies is replaced within milliseconds. Each worker has a socket of its own to this process, which
hands out the jobs and kills what is late, even where it never returns to Python. Messages are JSON:
reading one can never run anything. Nobody is left behind when this process dies: the server then
ends its whole process group.
"""

import contextlib
import functools
import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

START_SECONDS = 120.0  # for the server to import what it needs, on a machine under load
TRIES = 3  # of a job whose worker crashes or is killed by a hand, after which the job is at fault
JOBS_PER_WORKER = 5000  # caches of sympy grow; a fresh worker starts without them
_OUT_OF_MEMORY = 77  # exit code of a worker

Job = tuple[str, Sequence[Any]]


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    died: "" or "timed out", "out of memory", "crashed". error: what the function raised, or "".
    """

    result: Any = None
    error: str = ""
    died: str = ""


class Lock:
    """A lock that its thread can take again, of which each forked child and each copy has its own.

    One that a thread of the parent held while it forked would never be released in the child.
    """

    def __init__(self):
        self.of_process: dict[int, Any] = {}

    def __enter__(self) -> None:
        self.of_process.setdefault(os.getpid(), threading.RLock()).acquire()

    def __exit__(self, *_: Any) -> None:
        self.of_process[os.getpid()].release()

    def __reduce__(self) -> tuple[Any, ...]:
        return Lock, ()


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
        warm_up: Job | None = None,
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
        self.settings = {"workers": workers, "seconds": seconds, "memory_mb": memory_mb}
        self.settings |= {"preload": list(preload), "warm_up": warm_up}
        self.lock = Lock()  # held by a call in progress
        self._servers: dict[int, _Server] = {}  # by the process that started it
        weakref.finalize(self, _end, self._servers)

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(GradingPool, **self.settings), ()

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Run jobs and return their outcomes in the same order.

        Args:
            jobs: `("package.module:function", arguments)`; arguments and result pass as JSON.

        Raises:
            RuntimeError: The workers do not start; their own error is in the message.
        """
        outcomes: dict[int, Outcome] = {}
        with self.lock:
            try:
                for _ in range(TRIES + 1):
                    if len(outcomes) < len(jobs):
                        with contextlib.suppress(EOFError, ConnectionError):
                            self._share_out(jobs, outcomes)
                    if len(outcomes) == len(jobs):
                        return [outcomes[index] for index in range(len(jobs))]
                    _end(self._servers)
                raise RuntimeError(
                    f"the grading workers were killed {TRIES + 1} times in one batch, by a hand or "
                    f"by a system short of memory."
                )
            except BaseException:
                # Ctrl-C, or a caller that gives up: leave no worker behind with half a job.
                _end(self._servers)
                raise

    def _share_out(self, jobs: Sequence[Job], outcomes: dict[int, Outcome]) -> None:
        """Fill in what is left; an `EOFError` or `ConnectionError` where the server is gone."""
        server = self._servers.get(os.getpid()) or self._start()
        waiting = deque(index for index in range(len(jobs)) if index not in outcomes)
        crashes: Counter[int] = Counter()
        while len(outcomes) < len(jobs):
            for worker in server.workers:
                if waiting and worker.index is None:
                    worker.index = waiting.popleft()
                    worker.deadline = time.monotonic() + self.settings["seconds"]
                    with contextlib.suppress(ConnectionError):  # one that died is seen below
                        worker.connection.send_bytes(json.dumps(jobs[worker.index]).encode())
            soonest = min(worker.deadline for worker in server.workers) - time.monotonic()
            connections = [server.control, *(worker.connection for worker in server.workers)]
            if server.control in wait(connections, max(0.0, soonest)):
                raise EOFError
            for at, worker in enumerate(server.workers):
                here, index = worker.connection.poll(), worker.index
                late = not here and time.monotonic() > worker.deadline
                if late:
                    os.kill(worker.pid, signal.SIGKILL)
                if not here and not late:
                    continue
                try:
                    outcome = Outcome(*json.loads(worker.connection.recv_bytes()))
                    worker.index, worker.deadline = None, float("inf")
                except (EOFError, ConnectionError):
                    worker.connection.close()
                    status, server.workers[at] = server.fork(worker.pid)
                    died = "out of memory" if status == _OUT_OF_MEMORY else "crashed"
                    outcome = Outcome(died="timed out" if late else died)
                    crashes[index] += outcome.died == "crashed"
                    if index is not None and 0 < crashes[index] < TRIES:
                        waiting.appendleft(index)
                        continue
                if index is not None:
                    outcomes[index] = outcome

    def _start(self) -> "_Server":
        """The server of this process with its workers, started anew."""
        here = str(Path(__file__).resolve().parents[2])
        paths = [here, *(path or os.getcwd() for path in sys.path)]
        ours, theirs = socket.socketpair()
        ours.settimeout(START_SECONDS)
        with theirs, tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, json.dumps(self.settings)],
                stdin=theirs,
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
            server = self._servers[os.getpid()] = _Server(process, ours)
            with contextlib.suppress(EOFError, OSError):
                for _ in range(self.settings["workers"]):
                    server.workers.append(server.fork()[1])
                return server
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1.0)  # what it died of is known when it is gone
            _end(self._servers)
            if process.returncode in (-signal.SIGKILL, -signal.SIGTERM):
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
            _end(self._servers)

    def processes(self) -> list[int]:
        """Process id of the server, whose children the workers are."""
        return [s.process.pid for pid, s in self._servers.items() if pid == os.getpid()]


@dataclass
class _Worker:
    """A worker as its pool sees it, with the index of the job in hand."""

    pid: int
    connection: Connection
    index: int | None = None
    deadline: float = float("inf")


@dataclass
class _Server:
    process: subprocess.Popen
    control: socket.socket
    workers: list[_Worker] = field(default_factory=list)

    def fork(self, dead: int = 0) -> tuple[int, _Worker]:
        """(how a worker that is dead ended, a new one)."""
        self.control.sendall(str(dead).encode())
        said, descriptors, *_ = socket.recv_fds(self.control, 64, 1)
        if not descriptors:
            raise EOFError
        status, pid = map(int, said.split())
        return status, _Worker(pid, Connection(descriptors[0]))


def _end(servers: dict[int, _Server]) -> None:
    """Kill the server of this process, if it has one, with all that it started."""
    if (server := servers.pop(os.getpid(), None)) is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server.process.pid, signal.SIGKILL)
        for connection in (server.control, *(worker.connection for worker in server.workers)):
            connection.close()
        server.process.wait()


def main() -> None:
    """The server: fork workers as they are asked for, until the trainer is gone."""
    settings = json.loads(sys.argv[1])
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    control = socket.socket(fileno=os.dup(0))
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    for module in settings["preload"]:
        importlib.import_module(module)
    if settings["warm_up"]:
        _resolve(settings["warm_up"][0])(*settings["warm_up"][1])
    os.dup2(nowhere, 2)
    with contextlib.suppress(ConnectionError):
        while os.getppid() == parent:
            if not wait([control], 2.0):
                continue
            if not (dead := control.recv(64)):
                break
            status = os.waitpid(int(dead), 0)[1] if int(dead) else 0
            theirs, mine = socket.socketpair()
            pid = os.fork()
            if pid == 0:
                control.close()
                theirs.close()
                os._exit(_work(settings, Connection(mine.detach())))
            with theirs, mine:
                told = f"{os.waitstatus_to_exitcode(status)} {pid}"
                socket.send_fds(control, [told.encode()], [theirs.fileno()])
    os.killpg(0, signal.SIGKILL)


def _work(settings: Mapping[str, Any], pool: Connection) -> int:
    """A worker: answer jobs until the pool is gone; returns the exit code."""
    try:
        if limit := settings["memory_mb"] * 2**20:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for _ in range(JOBS_PER_WORKER):
            call, arguments = json.loads(pool.recv_bytes())
            try:
                answer = json.dumps([_resolve(call)(*arguments)])
            except MemoryError:
                raise
            except Exception as error:
                answer = json.dumps([None, f"{type(error).__name__}: {str(error)[:200]}"])
            pool.send_bytes(answer.encode())
        return 0
    except MemoryError:
        return _OUT_OF_MEMORY
    except BaseException as error:  # the graded code asks to exit, or nobody listens any more
        return 0 if isinstance(error, (EOFError, ConnectionError)) else 1


def _resolve(path: str) -> Callable[..., Any]:
    """The function behind `package.module:name`."""
    module, _, name = path.partition(":")
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


if __name__ == "__main__":
    main()
