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

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from anytime_lab.run.process import (
    LOOK,
    Job,
    Needs,
    RunFailed,
    read_or_nothing,
    run_to_end,
    told_changes,
)
from anytime_lab.run.storage import Storage
from anytime_lab.store.files import PROGRESS, write_json

SEEN = ".seen-by-all"  # in the folder of a sweep: a node knows by it that it shares the folder
VISIBLE = 60.0  # seconds that a shared file system may take to show a result to another machine
STOP = 20.0  # seconds that a run gets to end
QUEUED = 500  # runs that Ray gets at a time if nobody says how many; a thread waits for each


def moved(run: Job, root: Path) -> Job:
    """A run of another machine with its files below a root of this one.

    Raises:
        RunFailed: its notebook is not here, or code, parameters or versions differ here.
    """
    here, there = (json.dumps(str(path))[1:-1] for path in (run.root, root))
    parameters = json.loads(json.dumps(dict(run.parameters)).replace(here, there))
    ours = replace(run, parameters=parameters, folder=root / run.name)
    node = ray.util.get_node_ip_address()
    if not run.notebook.is_file():
        raise RunFailed(
            f"node {node} has no {run.notebook}. Install the project on every node at the same "
            "path."
        )
    if told := told_changes(run.made_of, ours.made_of):
        raise RunFailed(f"node {node} would make it differently: {told}. Install the same on all.")
    return ours


def _run_on_node(run: Job, url: str | None, told: Queue) -> None:
    """What a node does."""
    # Not `put`, which waits: Ray gives the cores of a run that waits to another one.
    tell = told.actor.put_nowait.remote
    tell((run.name, {}))
    if url is None and not (run.root / SEEN).exists():
        raise RunFailed(
            f"node {ray.util.get_node_ip_address()} does not see {run.root}. Put --out on a "
            "file system that all nodes share, or give --storage a URL."
        )
    with tempfile.TemporaryDirectory(prefix="anytime_lab-") as room:
        storage = None if url is None else Storage(url)
        ours = moved(run, Path(room).resolve() if storage else run.root)
        if storage:
            storage.set_aside(ours)
            storage.fetch(run.name, ours.folder)
        if ours.result is not None:  # an earlier try ended with its node
            return
        for other in run.inputs if storage else ():
            storage.fetch(other, ours.root / other)
        one = {"OMP_NUM_THREADS": "1"}  # Ray counts one core for each kernel without devices
        progress = ours.folder / PROGRESS
        try:
            run_to_end(ours, one, lambda: tell((run.name, read_or_nothing(progress))))
        finally:
            if storage:
                storage.keep(ours)


class RayPlace:
    """Runs on the nodes of a Ray cluster, see the module.

    Args:
        out: Folder of the sweep; on a file system that all nodes share unless `url` is given.
        workers: Most runs at a time; as many as the cluster takes if None.
        url: Where the results go if the nodes share no file system.
    """

    def __init__(self, out: Path, workers: int | None = None, url: str | None = None):
        self._mine = not ray.is_initialized()
        if self._mine:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(log_to_driver=False, logging_level="warning")
        self.out, self.url = out, url
        total = ray.cluster_resources()
        self._devices = bool(total.get("GPU"))
        self._most = workers or QUEUED
        self.width = min(self._most, max(1, int(total.get("GPU") or total.get("CPU", 1))))
        # A run is tried again whose node or worker was lost.
        self._task = ray.remote(
            max_retries=3, retry_exceptions=False, scheduling_strategy="SPREAD"
        )(_run_on_node)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), False)
        # Where runs tell that they have begun, and how far they are; then by name what they told
        self._told = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self._heard: dict[str, dict[str, Any]] = {}
        self._hearing = threading.Lock()

    def share(self, needs: Needs, taken: Sequence[Mapping] = ()) -> dict | None:
        """What is asked of Ray, which queues what its nodes cannot take yet."""
        if len(taken) >= self._most:
            return None
        gpus = int(self._devices) if needs.gpus is None else needs.gpus
        return {"num_gpus": gpus, "num_cpus": 1 if gpus else needs.processes}

    def check(self, needs: Needs) -> None:
        for asked, kind in zip(self.share(needs).values(), ("GPU", "CPU"), strict=True):
            most = max(n["Resources"].get(kind, 0) for n in ray.nodes() if n["Alive"])
            if asked > most:
                raise ValueError(
                    f"a run asks for {asked:g} {kind}s and the largest node of the cluster "
                    f"has {most:g}. Add a larger one, or change the step."
                )

    def run(self, run: Job, share: Mapping, look: Callable[..., None]) -> dict[str, Any]:
        (self.out / SEEN).touch()
        run.hash  # noqa: B018  what it is made of here travels with it
        ref, told = self._task.options(**share).remote(run, self.url, self._told), ""
        try:
            while not ray.wait([ref], timeout=LOOK)[0]:
                look(self._begun(run))
            ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            told = str(error.cause)
        except ray.exceptions.RayError as error:
            told = f"lost with its node or worker: {str(error).strip().splitlines()[0]}"
        except RunFailed as stopped:
            told = str(stopped)
            ray.cancel(ref)  # the run is stopped, and what it has left is kept
            if not ray.wait([ref], timeout=STOP)[0]:
                ray.cancel(ref, force=True)
        if self.url is not None:
            Storage(self.url).fetch(run.name, run.folder, told=True)
        deadline = time.monotonic() + VISIBLE
        while not told and run.result is None and time.monotonic() < deadline:
            time.sleep(LOOK)
        if run.result is None:
            unseen = f"it has ended, and {run.folder} shows no result after {VISIBLE:.0f} s"
            raise RunFailed(run.told_failure if run.failure else told or unseen)
        return run.result

    def _begun(self, run: Job) -> bool:
        """Whether a run has begun; how far it is is noted, if it shares no file system."""
        with self._hearing:
            self._heard |= dict(self._told.get_nowait_batch(self._told.qsize()))
        progress = self._heard.get(run.name)
        if self.url is not None and progress:
            write_json(run.folder / PROGRESS, progress, durable=False)
        return progress is not None

    def close(self) -> None:
        if self._mine:
            ray.shutdown()
