"""Runs on a Ray cluster of two nodes: each result once, also when a node is lost on the way."""

import shutil
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from made_notebooks import ROW_PARAMETERS, ROWS, notebook, row_notebook
from processes import until

from anytime_lab.__main__ import main
from anytime_lab.run.places import open_place
from anytime_lab.run.process import REPLACED, Job, Needs, RunFailed
from anytime_lab.run.sweep import prepare_sweep, run_sweep
from anytime_lab.store.files import read_json, read_jsonl

RUNS = 5  # on three cores: two rounds
# Tells that it has begun, and on which node. Until that is lost, the other node's later runs stay
# in their middle, and none of the first node ends and makes room there.
STAYS = f"""
import os, time
from pathlib import Path
node, gate = os.environ["NODE_OF_TEST"], Path(gate)
with open(Path(output_dir) / "starts.txt", "a") as starts:
    starts.write(node + "\\n")
stays = node == "1" and (gate / "one has ended").exists()
rows = 7 if stays else rows
{ROWS}
(gate / ("one has ended" if node == "1" and not stays else node)).write_text(output_dir)
while stays or node == "0" and not (gate / "lost").exists():
    time.sleep(0.05)
"""
# Stays in its middle until it may go on.
WAITS = f"""
from pathlib import Path
asked, rows = rows, rows if Path(gate).exists() else 20
{ROWS}
while rows < asked:
    time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def cluster():
    """Nodes of two cores and of one on this machine; the driver's is "0", the other "1".

    Ray counts devices that it is told of: the first node has one.
    """
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("NODE_OF_TEST", "0")
        # Without what takes seconds to begin and no run needs.
        bare = {"include_dashboard": False, "no_monitor": True, "include_log_monitor": False}
        head = {"num_cpus": 2, "num_gpus": 1, **bare}
        nodes = Cluster(initialize_head=True, head_node_args=head)
        patch.setenv("NODE_OF_TEST", "1")
        other = nodes.add_node(num_cpus=1)
        ray.init(address=nodes.address, log_to_driver=False, logging_level="error")
        try:
            yield nodes, other
        finally:
            ray.shutdown()
            nodes.shutdown()


@pytest.mark.slow
def test_a_lost_node_loses_and_doubles_no_result(cluster, tmp_path):
    nodes, other = cluster
    declared = f'{ROW_PARAMETERS}\ngate: str = ""'
    notebook(tmp_path, STAYS, name="rows.ipynb", parameters=declared)
    path, out, gate = tmp_path / "s.yaml", tmp_path / "out", tmp_path / "gate"
    gate.mkdir()
    grid = f"grid: {{x: {list(range(RUNS))}}}"
    path.write_text(
        f"notebook: rows\ngpus: 0\nbase: {{rows: 20, pause: 0, gate: {gate}}}\n{grid}\n"
    )
    prepared = prepare_sweep(path, out)

    def lose_the_other() -> str:
        """The folder in whose middle the node was, which had finished another run."""
        try:
            folder = until((gate / "1").exists, 200) and until((gate / "1").read_text)
            nodes.remove_node(other, allow_graceful=False)
            return folder
        finally:
            (gate / "lost").touch()

    with ThreadPoolExecutor() as pool:
        lost = pool.submit(lose_the_other)
        run_sweep(prepared, executor="ray")
    results = sorted(out.rglob("result.json"))
    assert len(results) == RUNS
    for job in prepared.jobs.values():
        assert read_json(job.folder / "result.json")["hash"] == job.run().hash
        x = job.parameters["x"]
        assert read_jsonl(job.folder / "rows.jsonl") == [
            {"row": row, "seed": 0, "x": x} for row in range(20)
        ]
    starts = {f.parent: f.read_text().split() for f in out.rglob("starts.txt")}
    # The lost run, and only that, was tried again on the node that was left.
    assert starts.pop(Path(lost.result())) == ["1", "0"]
    assert sorted(starts.values()) == [["0"], ["0"], ["0"], ["1"]]
    assert not list(out.rglob(REPLACED))


def chained(folder, x=1):
    row_notebook(folder)
    reads = (
        "import os\nfrom pathlib import Path\nlines = Path(at).read_text().splitlines()\n"
        "assert more != 'wrong', 'as it was told'\n"
        "(Path(output_dir) / 'count.txt').write_text("
        "f\"{len(lines)} on {os.environ['CUDA_VISIBLE_DEVICES']}\")"
    )
    declared = 'output_dir: str = ""\nat: str = ""\nmore: str = ""'
    notebook(folder, reads, name="reads.ipynb", parameters=declared)
    path = folder / "s.yaml"
    path.write_text(
        f"base: {{more: ''}}\nlist: [{{name: good}}, {{name: bad, more: wrong}}]\nsteps:\n"
        f"  a: {{notebook: rows, parameters: {{x: {x}, rows: 3}}}}\n"
        "  b: {notebook: reads, gpus: 0.5, parameters: {at: '${a}/rows.jsonl', more: '${more}'}}\n"
    )
    return path


@pytest.mark.slow
def test_results_behind_a_url_are_read_from_there(cluster, tmp_path, capsys):
    out, stored = tmp_path / "out", tmp_path / "stored"
    url = stored.as_uri()
    path = chained(tmp_path)
    prepared = prepare_sweep(path, out, storage=url)
    with pytest.raises(RunFailed, match="bad/seed-0/b.*AssertionError: as it was told"):
        run_sweep(prepared, executor="ray")
    names = ("good/seed-0/a", "good/seed-0/b", "bad/seed-0/a")
    for name in names:
        assert read_json(stored / name / "result.json") == read_json(out / name / "result.json")
        assert not (stored / name / "partial.tar").exists()
    assert (stored / "good/seed-0/b/count.txt").read_text() == "3 on 0"
    assert (stored / "bad/seed-0/b/partial.tar").exists()
    assert not (stored / "bad/seed-0/b/result.json").exists()
    # What is behind the URL counts, whatever this machine has.
    shutil.rmtree(out)
    (stored / "good/seed-0/a/result.json").unlink()
    states = {one.job.name: one for one in prepare_sweep(path, out, storage=url).plan().values()}
    assert [states[name].status for name in names] == ["begun", "done", "done"]
    assert states["bad/seed-0/b"].status == "failed"
    assert "as it was told" in states["bad/seed-0/b"].message
    # Another parameter: what was there is kept beside the new.
    path = chained(tmp_path, x=2)
    run_sweep(prepare_sweep(path, out, ["good/seed-0/a"], url), executor="ray")
    (old,) = (stored / "good/seed-0/a" / REPLACED).iterdir()
    assert {row["x"] for row in read_jsonl(old / "rows.jsonl")} == {1}
    assert {row["x"] for row in read_jsonl(stored / "good/seed-0/a/rows.jsonl")} == {2}
    with pytest.raises(ValueError, match="shows results behind file://.*give --storage"):
        prepare_sweep(path, out)


@pytest.mark.slow
def test_a_stopped_run_goes_on_from_what_it_left_behind_a_url(cluster, tmp_path):
    import ray

    notebook(tmp_path, WAITS, name="rows.ipynb", parameters=f'{ROW_PARAMETERS}\ngate: str = ""')
    path, gate = tmp_path / "s.yaml", tmp_path / "gate"
    path.write_text(f"notebook: rows\ngpus: 0.25\nbase: {{rows: 60, gate: {gate}}}\n")
    out, stored = tmp_path / "out", tmp_path / "stored"
    prepared = prepare_sweep(path, out, storage=stored.as_uri())
    (job,) = prepared.jobs.values()
    place = open_place("ray", out, storage=stored.as_uri())
    with pytest.raises(ValueError, match="2 GPUs and the largest node of the cluster has 1"):
        place.check(Needs(gpus=2))
    begun, stopped, run = threading.Event(), threading.Event(), job.run()

    def look(now):
        begun.set() if now else None
        if stopped.is_set():
            raise RunFailed("stopped")

    with ThreadPoolExecutor() as pool:
        future = pool.submit(place.run, run, place.share(job.needs), look)
        deadline = time.monotonic() + 120
        while not (job.folder / "progress.json").exists() and time.monotonic() < deadline:
            assert not future.done()
            time.sleep(0.1)
        assert begun.is_set()
        assert ray.available_resources()["GPU"] == 0.75
        stopped.set()
    with pytest.raises(RunFailed, match="stopped"):
        future.result()
    (planned,) = prepare_sweep(path, out, storage=stored.as_uri()).plan().values()
    assert planned.status == "begun"
    archive = stored / job.name / "partial.tar"
    with tarfile.open(archive) as kept:
        lines = kept.extractfile("rows.jsonl").read().splitlines()
    assert 0 < len(lines) <= 20
    gate.touch()
    run_sweep(prepared, executor="ray")
    rows = read_jsonl(out / job.name / "rows.jsonl")
    assert [row["row"] for row in rows] == list(range(60))
    assert not archive.exists()


@pytest.mark.slow
def test_a_run_does_not_wait_until_it_is_heard(cluster, tmp_path, monkeypatch):
    """Ray gives the cores of a task that waits to another one."""
    from ray.util.queue import Queue

    row_notebook(tmp_path)
    (tmp_path / "s.yaml").write_text("notebook: rows\ngpus: 0\nbase: {rows: 3}\n")
    out = tmp_path / "out"
    (job,) = prepare_sweep(tmp_path / "s.yaml", out).jobs.values()
    place = open_place("ray", out)
    out.mkdir()
    full = Queue(maxsize=1, actor_options={"num_cpus": 0})
    full.put(("another", {}))
    monkeypatch.setattr(place, "_told", full)
    monkeypatch.setattr(place, "_begun", lambda run: False)
    deadline = time.monotonic() + 60

    def look(begun):
        if time.monotonic() > deadline:
            raise RunFailed("it waits")

    place.run(job.run(), place.share(job.needs), look)
    assert len(read_jsonl(job.folder / "rows.jsonl")) == 3


def test_a_run_is_the_same_one_on_another_node(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    from anytime_lab.run.ray_place import moved

    path, here = row_notebook(tmp_path), tmp_path / "here"
    folder = here / "a/seed-0/train"
    parameters = {"output_dir": str(folder), "x": 2}
    settings = {"distributed_type": "FSDP"}
    needs = Needs(processes=2, timeout=9.0, accelerate=settings)
    run = Job("a/seed-0/train", path, parameters, folder, ("b",), needs, {"b": "hash"})
    there = moved(run, tmp_path / "there")
    assert there.folder == tmp_path / "there/a/seed-0/train"
    assert there.parameters == {"output_dir": str(there.folder), "x": 2}
    same = ("hash", "inputs", "needs")
    assert [getattr(there, name) for name in same] == [getattr(run, name) for name in same]
    told = {**run.made_of["versions"], "torch": "9.0"}
    monkeypatch.setattr("anytime_lab.run.process.versions_of", lambda _: told)
    with pytest.raises(RunFailed, match='would make it differently: torch ".*" → "9.0". Install'):
        moved(run, tmp_path / "there")
    path.unlink()
    with pytest.raises(RunFailed, match="has no .*rows.ipynb. Install the project on every node"):
        moved(run, tmp_path / "there")


def test_ray_is_asked_for_by_name_where_it_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "anytime_lab.run.ray_place", raising=False)
    path = chained(tmp_path)
    assert main(["sweep", str(path), "--out", str(tmp_path / "out"), "--executor", "ray"]) == 2
    assert "pip install 'anytime-lab[ray]'" in capsys.readouterr().err


def test_a_url_without_a_cluster_is_refused(tmp_path, capsys):
    path = chained(tmp_path)
    url = f"{tmp_path.as_uri()}/s"
    said = ["sweep", str(path), "--out", str(tmp_path / "out"), "--storage", url]
    assert main(said) == 2
    assert "choose the executor ray" in capsys.readouterr().err
