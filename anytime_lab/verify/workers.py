"""Worker processes with a hard limit of time and memory per job.

One fresh interpreter, the server, is started by `subprocess` and forks the workers: torch, CUDA,
threads and a notebook's `__main__` stay out of them, and a worker that dies is replaced within
milliseconds. Messages are JSON: reading one can never run anything. A kernel timer whose signal has
its default action ends a job that never returns to Python. Nobody is left behind when the trainer
dies: the server then ends its whole process group.
"""

import contextlib
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

START_SECONDS = 120.0  # for the server to import what it needs, on a machine under load
GRACE_SECONDS = 2.0  # after which a job that outlived its own timer is ended by the server
CRASHES = 2  # of a job's worker, after which the job is at fault
KILLS = 2  # of a job's worker by a hand, beyond one for each that may have been killed at once
JOBS_PER_WORKER = 5000  # caches of sympy grow; a fresh worker starts without them
_OUT_OF_MEMORY, _RECYCLE = 77, 78  # exit codes of a worker
_ENDED_BY = {
    -signal.SIGALRM: "timed out",
    _OUT_OF_MEMORY: "out of memory",
    **dict.fromkeys([-signal.SIGKILL, -signal.SIGTERM, _RECYCLE], "killed"),
}

Job = tuple[str, Sequence[Any]]


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
        self._start_empty()
        in_forked_child(self._start_empty)

    def _start_empty(self) -> None:
        """No server, and a lock that nobody holds; a forked child leaves the parent's alone."""
        self._lock = threading.Lock()
        self._server: list[tuple[subprocess.Popen, Connection]] = []  # one, or none
        self._finalizer = weakref.finalize(self, _end, self._server, os.getpid())

    def __getstate__(self) -> dict[str, Any]:
        """Settings only: a copy, pickled or deep, starts workers of its own."""
        return {"settings": self.settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start_empty()
        in_forked_child(self._start_empty)

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Run jobs and return their outcomes in the same order."""
        with contextlib.closing(self.stream(jobs)) as stream:
            outcomes = dict(stream)
        return [outcomes[index] for index in range(len(jobs))]

    def stream(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        """Run jobs and yield `(index, outcome)` as they finish.

        Other calls wait until the stream is closed: use it under `contextlib.closing`.

        Args:
            jobs: `("package.module:function", arguments)`; arguments and result pass as JSON.

        Raises:
            RuntimeError: The workers do not start; their own error is in the message.
        """
        if not jobs:
            return
        with self._lock:
            left, kills = dict(enumerate(jobs)), 0
            try:
                while left:
                    try:
                        connection = self._connect()
                        connection.send_bytes(json.dumps(list(left.items())).encode())
                        while left:
                            for index, *outcome in json.loads(connection.recv_bytes()):
                                del left[index]
                                yield index, Outcome(*outcome)
                    except (EOFError, ConnectionError):
                        _end(self._server, os.getpid())
                        kills += 1
                        if kills > KILLS + 1:
                            raise RuntimeError(
                                f"the grading workers were killed {kills} times in one batch, "
                                f"by a hand or by a system short of memory."
                            ) from None
            except BaseException:
                # Ctrl-C, or a caller that gives up: leave no worker behind with half a job.
                _end(self._server, os.getpid())
                raise

    def _connect(self) -> Connection:
        """The connection to the server, which is started where there is none."""
        if self._server:
            return self._server[0][1]
        here = str(Path(__file__).resolve().parents[2])
        paths = [here, *(path or os.getcwd() for path in sys.path)]
        ours, theirs = socket.socketpair()
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
            connection = Connection(ours.detach())
            self._server.append((process, connection))
            with contextlib.suppress(EOFError, ConnectionError):
                if connection.poll(START_SECONDS):
                    connection.recv_bytes()
                    return connection
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1.0)  # what it died of is known when it is gone
            _end(self._server, os.getpid())
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
        with self._lock:
            _end(self._server, os.getpid())

    def processes(self) -> list[int]:
        """Process id of the server, whose children the workers are."""
        return [process.pid for process, _ in self._server]


def _end(server: list[tuple[subprocess.Popen, Connection]], pid: int) -> None:
    """Kill the server with all that it started, unless this is a forked child of its owner."""
    while server and os.getpid() == pid:
        process, connection = server.pop()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        connection.close()
        process.wait()


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
    """A forked worker as the server sees it: its pipe, its job, its deadline."""

    def __init__(self, settings: dict[str, Any], others: Sequence["_Worker"], client: Connection):
        self.connection, mine = Pipe()
        self.index: int | None = None  # of the job in hand
        self.deadline = float("inf")
        self.pid = os.fork()
        if self.pid == 0:
            for connection in (client, self.connection, *(other.connection for other in others)):
                connection.close()
            os._exit(_work(settings, mine))
        mine.close()

    def give(self, index: int, job: Job, deadline: float) -> None:
        """Hand over a job; a worker that is gone is noticed at the next look at its pipe."""
        self.index, self.deadline = index, deadline
        with contextlib.suppress(ConnectionError):
            self.connection.send_bytes(json.dumps(job).encode())

    def look(self) -> tuple[list[Any] | None, str]:
        """(its answer if it arrived, how it ended or "")."""
        late = time.monotonic() > self.deadline
        if late:
            os.kill(self.pid, signal.SIGKILL)
        try:
            if not late and not self.connection.poll():
                return None, ""
            answer = [self.index, *json.loads(self.connection.recv_bytes())]
            self.index, self.deadline = None, float("inf")
            return answer, ""
        except (EOFError, ConnectionError):
            self.connection.close()
            status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            return None, "timed out" if late else _ENDED_BY.get(status, "crashed")


def main() -> None:
    """The server: share jobs out among workers until the trainer is gone."""
    settings = json.loads(sys.argv[1])
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    client = Connection(os.dup(0))
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    for module in settings["preload"]:
        importlib.import_module(module)
    if settings["warm_up"]:
        _resolve(settings["warm_up"][0])(*settings["warm_up"][1])
    os.dup2(nowhere, 2)
    with contextlib.suppress(EOFError, ConnectionError):
        client.send_bytes(b"ready")
        _share_out(settings, client, parent)
    os.killpg(0, signal.SIGKILL)


def _share_out(settings: dict[str, Any], client: Connection, parent: int) -> None:
    """Returns, or raises an error of the connection, when the trainer is gone."""
    seconds = settings["seconds"] + GRACE_SECONDS
    workers: list[_Worker] = []
    jobs: dict[int, Job] = {}
    waiting: deque[int] = deque()
    deaths: Counter[tuple[int, str]] = Counter()
    most = {"crashed": CRASHES, "killed": settings["workers"] + KILLS}
    while os.getppid() == parent:
        while len(workers) < settings["workers"]:
            workers.append(_Worker(settings, workers, client))
        for worker in workers:
            if waiting and worker.index is None:
                index = waiting.popleft()
                worker.give(index, jobs[index], time.monotonic() + seconds)
        soonest = min(worker.deadline for worker in workers) - time.monotonic()
        wait([client, *(w.connection for w in workers)], max(0.0, min(soonest, 2.0)))
        if client.poll():
            jobs = dict(json.loads(client.recv_bytes()))
            waiting.extend(jobs)
            deaths.clear()
        answers = []
        for worker in list(workers):
            answer, ended = worker.look()
            if ended:
                workers.remove(worker)
            if ended and (index := worker.index) is not None:
                deaths[index, ended] += 1
                if deaths[index, ended] < most.get(ended, 1):
                    waiting.appendleft(index)
                else:
                    answer = [index, None, "crashed" if ended in most else ended, ""]
            if answer:
                answers.append(answer)
        if answers:
            client.send_bytes(json.dumps(answers).encode())


def _work(settings: dict[str, Any], server: Connection) -> int:
    """A worker: answer jobs until the server is gone; returns the exit code."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, whatever it is doing
        if limit := settings["memory_mb"] * 2**20:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for _ in range(JOBS_PER_WORKER):
            job = json.loads(server.recv_bytes())
            signal.setitimer(signal.ITIMER_REAL, settings["seconds"])
            answer = _answer(*job)
            signal.setitimer(signal.ITIMER_REAL, 0)
            server.send_bytes(answer)
        return _RECYCLE
    except MemoryError:
        return _OUT_OF_MEMORY
    except BaseException as error:  # the graded code asks to exit, or nobody listens any more
        return 0 if isinstance(error, (EOFError, ConnectionError)) else 1


def _answer(call: str, arguments: Sequence[Any]) -> bytes:
    """`[result, died, error]` of a job."""
    try:
        return json.dumps([_resolve(call)(*arguments), "", ""]).encode()
    except MemoryError:
        raise
    except Exception as error:
        return json.dumps([None, "", f"{type(error).__name__}: {str(error)[:200]}"]).encode()


def _resolve(path: str) -> Callable[..., Any]:
    """The function behind `package.module:name`."""
    module, _, name = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


if __name__ == "__main__":
    main()
