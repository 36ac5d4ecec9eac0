"""A grading worker: `python -P -m anytime_lab.verify.worker`, started by `pool.GradingPool`.

Two processes. The keeper imports what is needed once and forks a server; the server takes jobs
from standard input and answers on standard output. Before a job the server sets a kernel timer
whose signal has its default action, so a job that never returns to Python still ends on time; the
keeper reports the death and forks the next server within milliseconds. Forking is safe here: the
keeper is a fresh interpreter with one thread, and neither torch nor a notebook is in it.

Nobody is left behind when the trainer dies: the server reads the end of its input, or its timer
ends it, and the keeper notices that its parent is gone.
"""

import contextlib
import importlib
import json
import mmap
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any

from anytime_lab.verify import frames

ENDED, RECYCLE = 0, 3  # exit codes of a server: no more input; please fork a fresh one
JOBS_PER_SERVER = 5000  # caches of sympy grow; a fresh server starts without them
_ID = struct.Struct("q")
_DIED = {signal.SIGALRM: "timed out", signal.SIGKILL: "killed", signal.SIGTERM: "killed"}


def main() -> None:
    """Keep one server running until the input ends."""
    config = json.loads(sys.argv[1])
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.dup(1)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # what graded code prints is not a reply
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for module in config["preload"]:
        importlib.import_module(module)
    if config["warm_up"]:
        _resolve(config["warm_up"][0])(*config["warm_up"][1])
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    current = mmap.mmap(-1, _ID.size)  # shared with the server: the job it is at
    frames.send(replies, {"ready": os.getpid()})
    while True:
        _ID.pack_into(current, 0, -1)
        server = os.fork()
        if server == 0:
            os._exit(_serve(config, replies, current))
        status = _wait(server, parent)
        (job,) = _ID.unpack_from(current, 0)
        if job >= 0:  # it was at a job, however it ended: graded code may exit, too
            ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
            with contextlib.suppress(BrokenPipeError):
                frames.send(replies, {"id": job, "died": _DIED.get(ended_by, "crashed")})
        elif not (os.WIFEXITED(status) and os.WEXITSTATUS(status) == RECYCLE):
            # The end of the input; or killed from outside, perhaps with half a job read: then the
            # pool sees this process end, too, and gives the job to another worker.
            return


def _wait(server: int, parent: int) -> int:
    """Wait for the server to end; end it and this process if the trainer is gone."""
    if not hasattr(signal, "sigtimedwait"):
        return os.waitpid(server, 0)[1]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        pid, status = os.waitpid(server, os.WNOHANG)
        if pid:
            return status
        if os.getppid() != parent:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)
            os._exit(0)
        signal.sigtimedwait({signal.SIGCHLD}, 2.0)


def _serve(config: dict[str, Any], replies: int, current: mmap.mmap) -> int:
    """Answer jobs until the input ends; returns the exit code."""
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, whatever it is doing
        limit = config["memory_bytes"]
        if limit:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        buffer = bytearray()
        for _ in range(JOBS_PER_SERVER):
            job = frames.receive(0, buffer)
            if job is None:
                return ENDED
            _ID.pack_into(current, 0, job["id"])
            signal.setitimer(signal.ITIMER_REAL, config["seconds"])
            reply = _answer(job)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _ID.pack_into(current, 0, -1)  # before the reply, which brings the next job
            frames.send(replies, {"id": job["id"], **reply})
            if reply.get("died"):
                return RECYCLE  # after running out of memory, start clean
        return RECYCLE
    except BaseException:
        # A broken pipe or a broken message: there is nobody to answer to.
        return ENDED


def _answer(job: dict[str, Any]) -> dict[str, Any]:
    try:
        result = _resolve(job["call"])(*job["args"])
        frames.encode({"result": result})  # an error of the job, not of the worker
        return {"result": result}
    except MemoryError:
        return {"died": "out of memory"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error)[:200]}"}


def _resolve(path: str) -> Callable[..., Any]:
    """The function behind `package.module:name`."""
    module, _, name = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


if __name__ == "__main__":
    main()
