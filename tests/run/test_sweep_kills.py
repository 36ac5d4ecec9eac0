"""A sweep that is killed at random moments and run again: nothing lost, doubled or torn."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from made_notebooks import notebook, row_notebook

from anytime_lab.run.process import (
    MARK,
    Job,
    Needs,
    RunFailed,
    run_to_end,
)
from anytime_lab.run.sweep import prepare_sweep, run_sweep
from anytime_lab.store.files import RunFolderError, read_json, read_jsonl

pytestmark = pytest.mark.slow  # every run starts a kernel
KILLS = 6  # half in the middle of the work, half before a kernel is up
EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


def start_sweep(path, out, *arguments):
    command = [sys.executable, "-m", "anytime_lab", "sweep", str(path), "--out", str(out)]
    log = open(out.parent / "log.txt", "ab")  # noqa: SIM115
    return subprocess.Popen([*command, *arguments], stdout=log, stderr=log, start_new_session=True)


def wait_for_rows(out, sweep, above=0):
    """The rows' file, once a running sweep has made more of them; one that has ended never will."""
    rows = out / "run/seed-0/rows.jsonl"
    while not rows.exists() or len(read_jsonl(rows)) <= above:
        if sweep.poll() is not None:
            log = (out.parent / "log.txt").read_text()
            pytest.fail(f"the sweep ended with {sweep.returncode}: {log[-3000:]}")
        time.sleep(0.05)
    return rows


def processes_of(out):
    """Everything alive that belongs to a run below the folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(str(out)):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def rows_in(out):
    """How many rows there are in the whole sweep."""
    return sum(len(read_jsonl(rows)) for rows in out.rglob("rows.jsonl"))


def kill_once(path, out, holds):
    """Start a sweep and kill it once that holds; returns whether it was whole before."""
    sweep = start_sweep(path, out, "--jobs", "2")
    while not holds():
        if sweep.poll() is not None:
            assert sweep.returncode == 0, (out.parent / "log.txt").read_text()[-3000:]
            return True
        time.sleep(0.005)
    sweep.kill()
    sweep.wait()
    return False


def check_after_kill(out, finished):
    """No torn or doubled row, and finished runs are as they were; adds those that are now."""
    for place in out.rglob("rows.jsonl"):
        rows = [row["row"] for row in read_jsonl(place)]
        assert rows == list(range(len(rows))), f"{place} after a kill"
    for place, told in finished.items():
        assert place.read_bytes() == told, f"{place} was finished and was made again"
    for place in out.rglob("result.json"):
        for file in (place, place.parent / "rows.jsonl"):
            finished[file] = file.read_bytes()
        json.loads(finished[place])


def check_whole(path, out):
    """Everything is there once, as an unbroken sweep makes it."""
    jobs = prepare_sweep(path, out).jobs
    assert len(jobs) == 4
    for place, job in jobs.items():
        rows = read_jsonl(job.folder / "rows.jsonl")
        x = int(place.variant.removeprefix("x="))
        wanted = 40 if place.step == "a" else 20
        assert rows == [{"row": n, "seed": place.seed, "x": x} for n in range(wanted)]
        assert read_json(job.folder / "result.json")["parameters"]["x"] == x
        executed = json.loads((job.folder / "notebook.ipynb").read_text())
        assert executed["metadata"]["papermill"]["exception"] is None
    assert not list(out.rglob(".replaced")), "a kill made nothing stale"
    assert not list(out.rglob("*.tmp"))


@pytest.mark.timeout(900)
def test_kills_lose_double_and_tear_nothing(tmp_path):
    row_notebook(tmp_path)
    path = tmp_path / "s.yaml"
    path.write_text(
        "grid: {x: [1, 2]}\nsteps:\n"
        "  a: {notebook: rows, parameters: {x: '${x}', rows: 40, pause: 0.02}}\n"
        "  b: {notebook: rows, parameters: {x: '${x}', rows: 20, pause: 0.02}}\n"
    )
    rng = random.Random(0)
    folders, finished, kills = [tmp_path / "out-0"], {}, 1
    started = time.monotonic()
    assert not kill_once(path, folders[0], lambda: rows_in(folders[0]))
    first = time.monotonic() - started  # what this machine takes to the first row
    while kills < KILLS:
        out = folders[-1]
        check_after_kill(out, finished)
        if kills % 2:  # in the middle of the work
            more = rows_in(out) + rng.randint(1, 30)
            whole = kill_once(path, out, lambda out=out, more=more: rows_in(out) >= more)
        else:  # before a kernel is up
            end = time.monotonic() + min(first, 5.0) * rng.uniform(0.1, 1.0)
            whole = kill_once(path, out, lambda end=end: time.monotonic() > end)
        if whole:  # nothing is left to kill here
            check_whole(path, out)
            folders.append(tmp_path / f"out-{len(folders)}")
        else:
            kills += 1
    check_after_kill(folders[-1], finished)
    sweep = start_sweep(path, folders[-1], "--jobs", "2")
    assert sweep.wait(timeout=400) == 0, (tmp_path / "log.txt").read_text()[-3000:]
    check_after_kill(folders[-1], finished)
    check_whole(path, folders[-1])


def test_what_killed_writers_left_goes_when_the_sweep_goes_on(tmp_path):
    row_notebook(tmp_path)
    path = tmp_path / "s.yaml"
    path.write_text("notebook: rows\nbase: {rows: 2}\n")
    out = tmp_path / "out"
    left = [out / "run/seed-0/progress.json.9.tmp", out / "comparison.html.9.tmp"]
    left[0].parent.mkdir(parents=True)
    for leftover in left:
        leftover.write_text("half")
    run_sweep(prepare_sweep(path, out), 1)
    assert not any(leftover.exists() for leftover in left)


def test_a_second_sweep_is_refused_and_nothing_goes_on_behind_a_killed_one(tmp_path):
    row_notebook(tmp_path)
    path = tmp_path / "s.yaml"
    path.write_text("notebook: rows\nbase: {rows: 10000}\n")
    out = tmp_path / "out"
    sweep = start_sweep(path, out)
    wait_for_rows(out, sweep)
    with pytest.raises(RunFolderError, match="another run writes into .*out now"):
        run_sweep(prepare_sweep(path, out), 1)
    assert sweep.poll() is None
    assert len(processes_of(out)) >= 2  # the launcher and its kernel
    os.kill(sweep.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while (alive := processes_of(out)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive
    sweep.wait()


def test_signals_stop_a_sweep_and_leave_it_to_go_on(tmp_path):
    row_notebook(tmp_path)
    path = tmp_path / "s.yaml"
    path.write_text("notebook: rows\nbase: {rows: 60, pause: 0.05}\n")
    out, before = tmp_path / "out", 0
    for number in (signal.SIGINT, signal.SIGTERM):
        sweep = start_sweep(path, out)
        rows = wait_for_rows(out, sweep, above=before)
        os.kill(sweep.pid, number)
        assert sweep.wait(timeout=60) == 130
        assert not processes_of(out)
        there = len(read_jsonl(rows))
        assert before < there < 60
        (planned,) = prepare_sweep(path, out).plan().values()
        # A row is written before it is counted: the signal may come between
        counted = {f"{count} of 60 rows" for count in (there - 1, there)}
        assert planned.status == "begun" and planned.message in counted
        before = there
    path.write_text("notebook: rows\nbase: {rows: 60, pause: 0.05}\ntimeout: 600\n")
    run_sweep(prepare_sweep(path, out), 1)
    assert [row["row"] for row in read_jsonl(rows)] == list(range(60))


def test_a_failed_run_is_tried_again_on_request_only(tmp_path, capsys):
    tries = tmp_path / "tries"
    code = f"open({str(tries)!r}, 'a').write('x')\nassert len(open({str(tries)!r}).read()) > 1"
    notebook(tmp_path, code, name="bad.ipynb")
    path = tmp_path / "s.yaml"
    path.write_text("notebook: bad\n")
    out = tmp_path / "out"
    with pytest.raises(RunFailed, match="AssertionError"):
        run_sweep(prepare_sweep(path, out), 1)
    (planned,) = prepare_sweep(path, out).plan().values()
    assert planned.status == "failed" and "AssertionError" in planned.message
    with pytest.raises(RunFailed, match="AssertionError"):
        run_sweep(prepare_sweep(path, out), 1)
    assert tries.read_text() == "x"
    run_sweep(prepare_sweep(path, out), 1, retry_failed=True)
    assert tries.read_text() == "xx"


def test_a_time_out_is_a_failure_with_its_reason(tmp_path):
    path = notebook(tmp_path, "import time\ntime.sleep(300)")
    run = Job("run", path, {}, tmp_path / "run", needs=Needs(timeout=4))
    with pytest.raises(RunFailed, match="TimeoutError: the run took longer than its limit of 4 s"):
        run_to_end(run)
    assert run.failure.startswith("TimeoutError")
    assert not processes_of(tmp_path / "run")


def test_several_processes_each_run_the_notebook_with_their_rank(tmp_path):
    code = (
        "import os\nfrom pathlib import Path\nfolder = Path(output_dir)\n"
        "told = [os.environ[name] for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR')]\n"
        "(folder / f'rank-{told[0]}.txt').write_text(' '.join(told[:2]))"
    )
    path = notebook(tmp_path, code, parameters='output_dir: str = ""')
    folder = tmp_path / "run"
    run = Job("run", path, {"output_dir": str(folder)}, folder, needs=Needs(processes=2))
    assert run_to_end(run)["hash"] == run.hash
    assert [(folder / f"rank-{r}.txt").read_text() for r in (0, 1)] == ["0 2", "1 2"]
    assert (folder / "notebook.ipynb").exists() and (folder / "notebook.rank-1.ipynb").exists()


def test_accelerate_starts_the_processes_by_its_settings(tmp_path):
    code = (
        "import os\nfrom pathlib import Path\nfolder = Path(output_dir)\n"
        "told = [os.environ[name] for name in ('RANK', 'WORLD_SIZE', 'ACCELERATE_USE_FSDP',"
        " 'FSDP_VERSION', 'FSDP_RESHARD_AFTER_FORWARD')]\n"
        "(folder / f'rank-{told[0]}.txt').write_text(' '.join(told).lower())"
    )
    notebook(tmp_path, code, parameters='output_dir: str = ""', name="told.ipynb")
    shipped = EXPERIMENTS / "accelerate/fsdp_7b_1node.yaml"
    settings = yaml.safe_load(shipped.read_text()) | {"num_processes": 2}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(settings))
    path = tmp_path / "s.yaml"
    path.write_text("notebook: told\naccelerate: two.yaml")
    (job,) = prepare_sweep(path, tmp_path / "out").jobs.values()
    assert job.needs.processes == 2
    run = job.run()
    assert run_to_end(run)["hash"] == run.hash
    told = [(run.folder / f"rank-{r}.txt").read_text() for r in (0, 1)]
    assert told == ["0 2 true 2 true", "1 2 true 2 true"]
    # Other settings make another run.
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(settings | {"mixed_precision": "no"}))
    (job,) = prepare_sweep(path, tmp_path / "out").jobs.values()
    assert job.run().stands == ("stale", "the settings of accelerate", None)
