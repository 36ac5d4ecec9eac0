"""Runs as tasks of a Ray cluster: `python -m anytime_lab.run.sweep FILE --executor ray`.

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
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from anytime_lab.run.notebook import (
    NotebookRun,
    RunFailed,
    finish_run,
    start_run,
    stop_run,
    told_changes,
)
from anytime_lab.run.places import Needs, Storage
from anytime_lab.store.records import PROGRESS, RunFolderError, read_json, write_json

LOOK = 1.0  # seconds between looks at the progress of runs
VISIBLE = 60.0  # seconds that a shared file system may take to show a result to another machine
STOP = 20.0  # seconds that a run gets to end


@dataclass(frozen=True)
class _Task:
    """A run as it travels: paths are relative to a root that may differ between machines."""

    name: str
    notebook: str
    root: str
    seen: str  # a file at the root, by which a node knows that it shares the root
    url: str | None
    hash: str
    made_of: Mapping[str, Any]
    timeout: float | None

    @classmethod
    def of(cls, run: NotebookRun, root: Path, seen: Path, url: str | None) -> "_Task":
        """A run whose folder is below a root of this machine."""
        name = run.folder.relative_to(root).as_posix()
        return cls(
            name, str(run.notebook), str(root), str(seen), url, run.hash, run.made_of, run.timeout
        )

    def at(self, root: Path) -> NotebookRun:
        """The run with its files below a root."""
        told = json.dumps(self.made_of["parameters"]).replace(
            "${root}", json.dumps(str(root))[1:-1]
        )
        run = NotebookRun(
            Path(self.notebook),
            json.loads(told),
            root / self.name,
            root,
            self.made_of["inputs"],
            self.timeout,
            self.made_of["processes"],
            self.made_of["accelerate"],
        )
        if not run.notebook.is_file():
            raise RunFailed(
                f"node {_node()} has no {run.notebook}. Install the project on every "
                "node at the same path."
            )
        if run.hash != self.hash:
            raise RunFailed(
                f"node {_node()} would make it differently: "
                f"{'; '.join(told_changes(self.made_of, run.made_of))}. Install the same on all."
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
        code = _watch(run, task.name, board)
        with contextlib.suppress(RunFailed):
            finish_run(run, code)  # leaves the reason of a failure
        return code
    finally:
        storage.keep(run, task.name)


def _watch(run: NotebookRun, name: str, board: Any) -> int:
    """Start a run and stay with it; it ends when this process does."""
    # Ray counts one core for each kernel of a run without devices.
    process = start_run(run, {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"})
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(LOOK)
            with contextlib.suppress(RunFolderError):
                board.tell.remote(name, read_json(run.folder / PROGRESS))
    except BaseException:
        stop_run(process)
        raise


@dataclass
class _Handle:
    task: _Task
    run: NotebookRun
    ref: Any
    ended: float | None = None


class RayExecutor:
    """Runs on the nodes of a Ray cluster, see the module.

    Args:
        out: Folder of the sweep; on a file system that all nodes share unless `url` is given.
        seen: A file that is in it while runs go on.
        workers: Most runs at a time; as many as the cluster takes if None.
        url: Where the results go if the nodes share no file system.
        retries: Of a run whose node or worker was lost.
    """

    def __init__(
        self,
        out: Path,
        seen: Path,
        workers: int | None = None,
        url: str | None = None,
        retries: int = 3,
    ):
        self._mine = not ray.is_initialized()
        if self._mine:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(log_to_driver=False, logging_level="warning")
        self.out, self.seen, self.url, self.workers = out, seen, url, workers
        self._task = ray.remote(
            max_retries=retries, retry_exceptions=False, scheduling_strategy="SPREAD"
        )(_run_on_node)
        here = ray.get_runtime_context().get_node_id()
        self._board = (
            ray.remote(_Board)
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(here, False))
            .remote()
        )
        self._told: dict[str, Any] = {}
        self._looked = 0.0
        self._running: list[_Handle] = []

    @property
    def width(self) -> int:
        """See `Executor`."""
        total = ray.cluster_resources()
        slots = max(1, int(total.get("GPU") or total.get("CPU", 1)))
        return min(slots, self.workers or slots)

    def _asks(self, needs: Needs, processes: int) -> dict[str, float]:
        gpus = needs.gpus
        if gpus is None:
            gpus = 1 if ray.cluster_resources().get("GPU") else 0
        return {"num_gpus": gpus, "num_cpus": 1 if gpus else processes}

    def check(self, needs: Needs, processes: int) -> None:
        """See `Executor`."""
        asked = self._asks(needs, processes)
        for key, kind in (("num_gpus", "GPU"), ("num_cpus", "CPU")):
            most = max(n["Resources"].get(kind, 0) for n in ray.nodes() if n["Alive"])
            if asked[key] > most:
                raise ValueError(
                    f"a run asks for {asked[key]:g} {kind}s and the largest node of the cluster "
                    f"has {most:g}. Add a larger one, or change the step."
                )

    def fits(self, needs: Needs) -> bool:
        """See `Executor`; Ray queues what its nodes cannot take yet."""
        return self.workers is None or len(self._running) < self.workers

    def start(self, run: NotebookRun, needs: Needs) -> _Handle:
        """See `Executor`."""
        task = _Task.of(run, self.out, self.seen, self.url)
        self._told.pop(task.name, None)
        ref = self._task.options(**self._asks(needs, run.processes)).remote(task, self._board)
        handle = _Handle(task, run, ref)
        self._running.append(handle)
        return handle

    def begun(self, handle: _Handle) -> bool:
        """See `Executor`."""
        return handle.task.name in self._told

    def poll(self, handle: _Handle) -> int | None:
        """See `Executor`."""
        self._look()
        if handle.ended is None and not ray.wait([handle.ref], timeout=0)[0]:
            return None
        handle.ended = handle.ended or time.monotonic()
        try:
            code = ray.get(handle.ref)
        except ray.exceptions.RayTaskError as error:
            self._running.remove(handle)
            raise RunFailed(str(error.cause)) from error
        except ray.exceptions.RayError as error:
            self._running.remove(handle)
            told = str(error).strip().splitlines()[0]
            raise RunFailed(f"lost with its node or worker: {told}") from error
        if self.url is not None:
            Storage(self.url).fetch(handle.task.name, handle.run.folder, told=True)
        elif code == 0 and handle.run.result is None and time.monotonic() < handle.ended + VISIBLE:
            return None
        self._running.remove(handle)
        return code

    def _look(self) -> None:
        """Note what runs have told; where they share no file system, for the table too."""
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        with contextlib.suppress(ray.exceptions.RayError):
            self._told |= ray.get(self._board.all.remote(), timeout=5)
        for handle in self._running:
            progress = self._told.get(handle.task.name)
            if self.url is not None and progress is not None:
                write_json(handle.run.folder / PROGRESS, progress, durable=False)

    def stop(self, handles: Sequence[_Handle]) -> None:
        """See `Executor`."""
        refs = [handle.ref for handle in handles]
        for ref in refs:
            ray.cancel(ref)  # the run is stopped, and what it has left is kept
        _, left = ray.wait(refs, num_returns=len(refs), timeout=STOP) if refs else ([], [])
        for ref in left:
            ray.cancel(ref, force=True)
        self._running = [one for one in self._running if one not in handles]

    def close(self) -> None:
        """See `Executor`."""
        if self._mine:
            ray.shutdown()
