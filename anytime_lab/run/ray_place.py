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
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import ray
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from anytime_lab.run.places import Place
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


def moved(run: Job, root: Path) -> Job:
    """A run of another machine with its files below a root of this one.

    Raises:
        RunFailed: its notebook is not here, or code, parameters or versions differ here.
    """
    here, there = (json.dumps(str(path))[1:-1] for path in (run.root, root))
    parameters = json.loads(json.dumps(dict(run.parameters)).replace(here, there))
    ours = replace(run, parameters=parameters, folder=root / run.name, root=root)
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
    told.put((run.name, {}))
    if url is None:
        if not (run.root / SEEN).exists():
            raise RunFailed(
                f"node {ray.util.get_node_ip_address()} does not see {run.root}. Put --out on a "
                "file system that all nodes share, or give --storage a URL."
            )
        run = moved(run, run.root)
        if run.result is None:
            _run_here(run, told)
        return
    with tempfile.TemporaryDirectory(prefix="anytime_lab-") as room:
        root, storage = Path(room).resolve(), Storage(url)
        run = moved(run, root)
        storage.set_aside(run)
        storage.fetch(run.name, run.folder)
        if run.result is not None:  # an earlier try ended with its node
            return
        for other in run.inputs:
            storage.fetch(other, root / other)
        try:
            _run_here(run, told)
        finally:
            storage.keep(run)


def _run_here(run: Job, told: Queue) -> None:
    def look() -> None:
        told.put((run.name, read_or_nothing(run.folder / PROGRESS)))

    # Ray counts one core for each kernel of a run without devices.
    run_to_end(run, {"OMP_NUM_THREADS": "1"}, look)


class RayPlace(Place):
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
        self.out, self.url, self.workers = out, url, workers
        # A run is tried again whose node or worker was lost.
        self._task = ray.remote(
            max_retries=3, retry_exceptions=False, scheduling_strategy="SPREAD"
        )(_run_on_node)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), False)
        # Where runs tell that they have begun, and how far they are
        self._told = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self._going: dict[str, tuple[Future, ray.ObjectRef]] = {}

    @property
    def width(self) -> int:
        total = ray.cluster_resources()
        slots = max(1, int(total.get("GPU") or total.get("CPU", 1)))
        return min(slots, self.workers or slots)

    def _asks(self, needs: Needs) -> dict[str, float]:
        gpus = needs.gpus
        if gpus is None:
            gpus = 1 if ray.cluster_resources().get("GPU") else 0
        return {"num_gpus": gpus, "num_cpus": 1 if gpus else needs.processes}

    def check(self, needs: Needs) -> None:
        asked = self._asks(needs)
        for key, kind in (("num_gpus", "GPU"), ("num_cpus", "CPU")):
            most = max(n["Resources"].get(kind, 0) for n in ray.nodes() if n["Alive"])
            if asked[key] > most:
                raise ValueError(
                    f"a run asks for {asked[key]:g} {kind}s and the largest node of the cluster "
                    f"has {most:g}. Add a larger one, or change the step."
                )

    def fits(self, needs: Needs) -> bool:
        # Ray queues what its nodes cannot take yet.
        going = sum(not future.done() for future, _ in self._going.values())
        return self.workers is None or going < self.workers

    def submit(self, run: Job, needs: Needs) -> Future:
        (self.out / SEEN).touch()
        run.hash  # noqa: B018  what it is made of here travels with it
        ref = self._task.options(**self._asks(needs)).remote(run, self.url, self._told)
        future: Future = Future()
        self._going[run.name] = (future, ref)
        # In a thread of its own: files may have to be waited for.
        waits = threading.Thread(target=self._end, args=(future, run, ref))
        ref.future().add_done_callback(lambda _: waits.start())
        return future

    def _end(self, future: Future, run: Job, ref: ray.ObjectRef) -> None:
        """Take the end of a task."""
        told = ""
        try:
            ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            told = str(error.cause)
        except ray.exceptions.RayError as error:
            told = f"lost with its node or worker: {str(error).strip().splitlines()[0]}"
        try:
            if self.url is not None:
                Storage(self.url).fetch(run.name, run.folder, told=True)
            deadline = time.monotonic() + VISIBLE
            while not told and run.result is None and time.monotonic() < deadline:
                time.sleep(LOOK)
            if run.result is None:
                unseen = f"it has ended, and {run.folder} shows no result after {VISIBLE:.0f} s"
                raise RunFailed(run.told_failure if run.failure else told or unseen)
            future.set_result(run.result)
        except Exception as error:
            future.set_exception(error)

    def look(self) -> None:
        """Note which runs have begun, and how far those are that share no file system."""
        for name, progress in self._told.get_nowait_batch(self._told.qsize()):
            future = self._going[name][0]
            if not future.done() and not future.running():
                future.set_running_or_notify_cancel()
            if self.url is not None and progress and not future.done():
                write_json(self.out / name / PROGRESS, progress, durable=False)

    def stop(self) -> None:
        refs = [ref for future, ref in self._going.values() if not future.done()]
        for ref in refs:
            ray.cancel(ref)  # the run is stopped, and what it has left is kept
        _, left = ray.wait(refs, num_returns=len(refs), timeout=STOP) if refs else ([], [])
        for ref in left:
            ray.cancel(ref, force=True)

    def close(self) -> None:
        if self._mine:
            ray.shutdown()
