"""Runs as tasks of a Ray cluster: `sweep FILE --executor ray`.

Ray queues the runs, gives each its devices (a share of one too) and tries a run again whose node or
worker was lost. Every node has the project installed in the same versions, and results lie on

- a path that all nodes share (`--out`), where a run that was lost goes on from what it had written,
- or behind an fsspec URL (`--storage`): a run works on its node's disk (`TMPDIR`), is uploaded when
  it ends, and begins again when its node is lost.

The cluster is the one that `RAY_ADDRESS` names or that runs on this machine; with none, this
machine becomes one. Under SLURM, Ray makes a cluster of an allocation; in a batch script of four
nodes, with the project's environment active:

    srun --ntasks-per-node 1 ray symmetric-run --address "$(hostname):6379" --min-nodes 4 -- \\
        python -m anytime_lab sweep experiments/paper_main.yaml --executor ray --out /shared/runs/x
"""

import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from anytime_lab.run.process import (
    LOG,
    Needs,
    NotebookRun,
    RunFailed,
    finish_run,
    start_run,
    stop_run,
    told_changes,
)
from anytime_lab.run.storage import Storage
from anytime_lab.store.files import PROGRESS, RunFolderError, read_json, write_json

SEEN = ".seen-by-all"
LOOK = 1.0  # seconds between looks at the progress of runs
VISIBLE = 60.0  # seconds that a shared file system may take to show a result to another machine
STOP = 20.0  # seconds that a run gets to end


@dataclass(frozen=True)
class _Task:
    """A run as it travels: paths are relative to a root that may differ between machines."""

    name: str
    run: NotebookRun
    made_of: Mapping[str, Any]
    root: str
    seen: str  # a file at the root, by which a node knows that it shares the root
    url: str | None

    @classmethod
    def of(cls, run: NotebookRun, root: Path, url: str | None) -> "_Task":
        """A run whose folder is below a root of this machine."""
        name = run.folder.relative_to(root).as_posix()
        return cls(name, run, run.made_of, str(root), str(root / SEEN), url)

    def at(self, root: Path) -> NotebookRun:
        """The run with its files below a root."""
        here, there = (json.dumps(str(path))[1:-1] for path in (self.root, root))
        parameters = json.loads(json.dumps(dict(self.run.parameters)).replace(here, there))
        folder = root / self.name
        run = replace(self.run, parameters=parameters, folder=folder, root=root)
        if not run.notebook.is_file():
            raise RunFailed(
                f"node {_node()} has no {run.notebook}. Install the project on every "
                "node at the same path."
            )
        if told := told_changes(self.made_of, run.made_of):
            raise RunFailed(
                f"node {_node()} would make it differently: {'; '.join(told)}. Install the same on "
                "all."
            )
        return run


def _node() -> str:
    return ray.util.get_node_ip_address()


class _Board:
    """Where runs tell how far they are."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {}

    def tell(self, name: str, progress: Any) -> None:
        self.told[name] = progress

    def forget(self, name: str) -> None:
        self.told.pop(name, None)

    def all(self) -> dict[str, Any]:
        return self.told


def _run_on_node(task: _Task, board: Any) -> int:
    """What a node does: the exit status of the run."""
    board.tell.remote(task.name, None)
    if task.url is not None:
        with tempfile.TemporaryDirectory(prefix="anytime_lab-") as room:
            return _run_by_storage(task, board, Path(room).resolve())
    if not Path(task.seen).exists():
        raise RunFailed(
            f"node {_node()} does not see {task.root}. Put "
            "--out on a file system that all nodes share, or give --storage a URL."
        )
    run = task.at(Path(task.root))
    return 0 if run.result is not None else _watch(run, task.name, board)


def _run_by_storage(task: _Task, board: Any, root: Path) -> int:
    storage = Storage(task.url)
    run = task.at(root)
    storage.set_aside(run, task.name)
    storage.fetch(task.name, run.folder)
    if run.result is not None:  # an earlier try ended with its node
        return 0
    for name in run.inputs:
        storage.fetch(name, root / name)
    try:
        return _watch(run, task.name, board)
    finally:
        storage.keep(run, task.name)


def _watch(run: NotebookRun, name: str, board: Any) -> int:
    """Start a run and stay with it; it ends when this process does."""
    # Ray counts one core for each kernel of a run without devices.
    process = start_run(run, {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"})
    try:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOK)
            with contextlib.suppress(RunFolderError):
                board.tell.remote(name, read_json(run.folder / PROGRESS))
    except BaseException:
        stop_run(process)
        raise
    with contextlib.suppress(RunFailed):
        finish_run(run, process.returncode, process)  # leaves the reason of a failure
    return process.returncode


class RayPlace:
    """A `places.Place`: runs on the nodes of a Ray cluster, see the module.

    Args:
        out: Folder of the sweep; on a file system that all nodes share unless `url` is given.
        workers: Most runs at a time; as many as the cluster takes if None.
        url: Where the results go if the nodes share no file system.
        retries: Of a run whose node or worker was lost.
    """

    def __init__(
        self, out: Path, workers: int | None = None, url: str | None = None, retries: int = 3
    ):
        self._mine = not ray.is_initialized()
        if self._mine:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(log_to_driver=False, logging_level="warning")
        self.out, self.url, self.workers = out, url, workers
        self._task = ray.remote(
            max_retries=retries, retry_exceptions=False, scheduling_strategy="SPREAD"
        )(_run_on_node)
        here = ray.get_runtime_context().get_node_id()
        self._board = (
            ray.remote(_Board)
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(here, False))
            .remote()
        )
        self._going: dict[Future, tuple[_Task, ray.ObjectRef]] = {}
        self._ended: set[Future] = set()
        self._looked = 0.0

    @property
    def width(self) -> int:
        """See `Place`."""
        total = ray.cluster_resources()
        slots = max(1, int(total.get("GPU") or total.get("CPU", 1)))
        return min(slots, self.workers or slots)

    def _asks(self, needs: Needs) -> dict[str, float]:
        gpus = needs.gpus
        if gpus is None:
            gpus = 1 if ray.cluster_resources().get("GPU") else 0
        return {"num_gpus": gpus, "num_cpus": 1 if gpus else needs.processes}

    def check(self, needs: Needs) -> None:
        """See `Place`."""
        asked = self._asks(needs)
        for key, kind in (("num_gpus", "GPU"), ("num_cpus", "CPU")):
            most = max(n["Resources"].get(kind, 0) for n in ray.nodes() if n["Alive"])
            if asked[key] > most:
                raise ValueError(
                    f"a run asks for {asked[key]:g} {kind}s and the largest node of the cluster "
                    f"has {most:g}. Add a larger one, or change the step."
                )

    def fits(self, needs: Needs) -> bool:
        """See `Place`; Ray queues what its nodes cannot take yet."""
        going = sum(not future.done() for future in self._going)
        return self.workers is None or going < self.workers

    def submit(self, run: NotebookRun, needs: Needs) -> Future:
        """See `Place`."""
        (self.out / SEEN).touch()
        task = _Task.of(run, self.out, self.url)
        ray.get(self._board.forget.remote(task.name))
        ref = self._task.options(**self._asks(needs)).remote(task, self._board)
        future: Future = Future()
        self._going[future] = (task, ref)
        return future

    def _end(self, future: Future, task: _Task, ref: ray.ObjectRef) -> None:
        """Take the end of a task, in a thread of its own: files may have to be waited for."""
        run = task.run
        if not future.running():
            future.set_running_or_notify_cancel()
        try:
            code = ray.get(ref)
            if self.url is not None:
                Storage(self.url).fetch(task.name, run.folder, told=True)
            deadline = time.monotonic() + VISIBLE
            while code == 0 and run.result is None and time.monotonic() < deadline:
                time.sleep(LOOK)
            if run.result is None and (reason := run.failure) is not None:
                raise RunFailed(f"{reason.rstrip('.')}. Log: {run.folder / LOG}")
            future.set_result(finish_run(run, code))
        except ray.exceptions.RayTaskError as error:
            future.set_exception(RunFailed(str(error.cause)))
        except ray.exceptions.RayError as error:
            told = str(error).strip().splitlines()[0]
            future.set_exception(RunFailed(f"lost with its node or worker: {told}"))
        except Exception as error:
            future.set_exception(error)

    def look(self) -> None:
        """Note which runs have ended or begun, and how far those are that share no file system."""
        refs = {ref: one for one, (_, ref) in self._going.items() if one not in self._ended}
        for ref in ray.wait(list(refs), num_returns=len(refs), timeout=0)[0] if refs else ():
            future = refs[ref]
            self._ended.add(future)
            threading.Thread(target=self._end, args=(future, *self._going[future])).start()
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        told = {}
        with contextlib.suppress(ray.exceptions.RayError):
            told = ray.get(self._board.all.remote(), timeout=5)
        for future, (task, _) in self._going.items():
            if future in self._ended or task.name not in told:
                continue
            if not future.running():
                future.set_running_or_notify_cancel()
            if self.url is not None and told[task.name] is not None:
                write_json(self.out / task.name / PROGRESS, told[task.name], durable=False)

    def stop(self, futures: Sequence[Future]) -> None:
        """See `Place`."""
        refs = [self._going[future][1] for future in futures if not future.done()]
        for ref in refs:
            ray.cancel(ref)  # the run is stopped, and what it has left is kept
        _, left = ray.wait(refs, num_returns=len(refs), timeout=STOP) if refs else ([], [])
        for ref in left:
            ray.cancel(ref, force=True)

    def close(self) -> None:
        """See `Place`."""
        if self._mine:
            ray.shutdown()
