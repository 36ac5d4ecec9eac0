"""What a sweep's file may say, what its runs are, and how its plan stands."""

import json
import re

import pytest
import yaml
from made_notebooks import notebook, row_notebook

from anytime_lab.run.notebook import NotebookRun, RunFailed, finish_run, told_changes, versions
from anytime_lab.run.places import LocalExecutor, Needs, _Local, threads_of
from anytime_lab.run.sweep import (
    Place,
    load_sweep,
    main,
    plan_line,
    plan_sweep,
    prepare_sweep,
    run_sweep,
    sweep_jobs,
)
from anytime_lab.store.records import write_json


def sweep_file(folder, text, name="s.yaml"):
    path = folder / name
    path.write_text(text)
    return path


def chain(folder, more="", steps=""):
    row_notebook(folder)
    steps = steps or (
        "  a: {notebook: rows, parameters: {x: '${x}'}}\n"
        "  b: {notebook: rows, parameters: {x: '${x}', rows: 2}}\n"
    )
    return sweep_file(folder, f"{more or 'base: {x: 3}'}\nsteps:\n{steps}")


# --- the file ------------------------------------------------------------------------------------


def test_numbers_are_read_as_people_write_them(tmp_path):
    row_notebook(tmp_path)
    text = "notebook: rows\nbase: {pause: 1e-6}\ngrid: {x: [1, 20]}\nseeds: [0]"
    jobs = sweep_jobs(load_sweep(sweep_file(tmp_path, text)), tmp_path / "out")
    assert yaml.safe_load("1e-6") == "1e-6", "the trap that this test is about"
    assert [job.parameters["pause"] for job in jobs.values()] == [1e-6, 1e-6]
    assert [job.name for job in jobs.values()] == ["x=1/seed-0", "x=20/seed-0"]


def test_a_value_may_be_called_as_the_only_notebook_is(tmp_path):
    row_notebook(tmp_path)
    path = sweep_file(tmp_path, "notebook: rows\nbase: {rows: 7}")
    (job,) = sweep_jobs(load_sweep(path), tmp_path / "out").values()
    assert job.parameters["rows"] == 7
    with pytest.raises(ValueError, match="a cannot be a value .* that name is taken"):
        load_sweep(chain(tmp_path, "base: {x: 1, a: 2}"))


def test_batches_are_counted_over_all_processes(tmp_path):
    said = "base: {settings: {per_device_train_batch_size: 4, gradient_accumulation_steps: 1}}"
    path = sweep_file(tmp_path, f"notebook: 02_train\n{said}\nprocesses: 2")
    assert len(prepare_sweep(path, tmp_path / "out").jobs) == 1
    path = sweep_file(tmp_path, f"notebook: 02_train\n{said}")
    with pytest.raises(ValueError, match="no whole number of groups"):
        prepare_sweep(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (None, "there is no .*a.yaml; accelerate names a file of its settings"),
        ("{num_machines: 1}", "has no num_processes"),
        ("just text", "has no num_processes"),
        (
            "{num_processes: 16, num_machines: 2}",
            "is for 2 machines; a sweep runs each step on one",
        ),
    ],
)
def test_settings_of_accelerate_that_cannot_be(tmp_path, settings, says):
    row_notebook(tmp_path)
    if settings is not None:
        (tmp_path / "a.yaml").write_text(settings)
    with pytest.raises(ValueError, match=says):
        load_sweep(sweep_file(tmp_path, "notebook: rows\naccelerate: a.yaml"))


def test_a_result_counts_however_its_process_ended(tmp_path):
    run = NotebookRun(row_notebook(tmp_path), {}, tmp_path / "run")
    run.folder.mkdir()
    write_json(run.folder / "result.json", {"hash": run.hash, "seconds": 1.0})
    assert finish_run(run, -6)["seconds"] == 1.0
    write_json(run.folder / "result.json", {"hash": "of another run"})
    with pytest.raises(RunFailed, match="stopped by signal SIGABRT"):
        finish_run(run, -6)


def shares(devices, workers, *wanted):
    """What runs that start one after another get, None where one has to wait."""
    here = LocalExecutor(workers, devices=devices)
    got = []
    for gpus in wanted:
        share = here._share(Needs(gpus)) if here.fits(Needs(gpus)) else None
        got.append(share)
        if share is not None:
            here._running.append(_Local(None, share))
    return got


@pytest.mark.parametrize(
    ("devices", "workers", "wanted", "got"),
    [
        ("", 2, [None, None, None], [{}, {}, None]),
        ("01", 2, [None, None, None], [{"0": 1}, {"1": 1}, None]),
        ("0123", 2, [None, None], [{"0": 1, "1": 1}, {"2": 1, "3": 1}]),
        ("01", 4, [None] * 4, [{"0": 0.5}, {"1": 0.5}, {"0": 0.5}, {"1": 0.5}]),
        ("01", 3, [2, None], [{"0": 1, "1": 1}, None]),
        ("0", 3, [0.5, 1, 0.5, 0], [{"0": 0.5}, None, {"0": 0.5}, {}]),
    ],
)
def test_devices_are_shared_out_without_giving_one_twice(devices, workers, wanted, got):
    assert shares(tuple(devices), workers, *wanted) == got


@pytest.mark.parametrize(
    ("told", "workers", "threads"),
    [(None, 1, 8), (None, 3, 2), (None, 20, 1), ("1", 2, 1), ("16", 2, 4), ("", 2, 4)],
)
def test_cores_are_shared_out_between_the_runs(monkeypatch, told, workers, threads):
    monkeypatch.setattr("anytime_lab.run.places.cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if told is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert threads_of(workers) == threads


def test_more_devices_than_there_are_is_refused_before_anything_runs(tmp_path):
    row_notebook(tmp_path)
    path = sweep_file(tmp_path, "notebook: rows\ngpus: 2")
    here = LocalExecutor(1, devices=("0",))
    with pytest.raises(ValueError, match="asks for 2 GPUs and this machine has 1"):
        run_sweep(prepare_sweep(path, tmp_path / "out"), executor=here)
    assert not list((tmp_path / "out").rglob("run.json"))


def test_lists_cross_with_the_grid_and_carry_their_own_seeds(tmp_path):
    row_notebook(tmp_path)
    text = (
        "notebook: rows\ngrid: {x: [1, 2]}\nlist: [{name: slow, pause: 1}, {name: fast, "
        "pause: 0.5, seeds: [7]}]\nseeds: [0, 1]"
    )
    jobs = sweep_jobs(load_sweep(sweep_file(tmp_path, text)), tmp_path / "out")
    assert [job.name for job in jobs.values()] == [
        "slow,x=1/seed-0", "slow,x=1/seed-1", "slow,x=2/seed-0", "slow,x=2/seed-1",
        "fast,x=1/seed-7", "fast,x=2/seed-7",
    ]  # fmt: skip
    last = list(jobs.values())[-1].parameters
    assert last == {"x": 2, "pause": 0.5, "seed": 7, "output_dir": str(tmp_path / "out" / "fast,x=2" / "seed-7")}  # fmt: skip  # noqa: E501


def test_later_steps_refer_to_folders_values_and_results(tmp_path):
    row_notebook(tmp_path)
    steps = (
        "  a: {notebook: rows, parameters: {x: '${x}'}}\n"
        "  b: {notebook: more, parameters: {at: '${a}/rows.jsonl', x: '${a.parameters.x}'}}\n"
        "  c: {notebook: more, parameters: {at: '${b@first} and ${seed}'}}\n"
    )
    notebook(tmp_path, "pass", name="more.ipynb", parameters='at: str = ""\nx: int = 0')
    path = chain(tmp_path, "list: [{name: first, x: 5}, {name: second, x: 6}]", steps)
    jobs = sweep_jobs(load_sweep(path), tmp_path / "out")
    out = tmp_path / "out"
    a, b = (jobs[Place("second", 0, step)] for step in "ab")
    assert callable(b.parameters) and b.after == (a.name,)
    write_json(a.folder / "result.json", {"parameters": {"x": 6}})
    assert b.parameters() == {"at": f"{out}/second/seed-0/a/rows.jsonl", "x": 6}
    c = jobs[Place("second", 0, "c")]
    assert c.parameters == {"at": f"{out}/first/seed-0/b and 0"}
    assert c.after == ("first/seed-0/b",)
    order = [job.name for job in jobs.values()]
    assert order.index("first/seed-0/b") < order.index("second/seed-0/c")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("notebook: rows\nsede: [1]", "no key 'sede'; do you mean seeds"),
        ("notebook: row\n", "no notebook 'row'"),
        ("notebook: 2_train", "Do you mean 02_train"),
        ("base: {x: 1}", "either `notebook`"),
        ("notebook: rows\nbase: {y: 1}", "no parameter 'y'; it has output_dir, x"),
        ("notebook: rows\nbase: {x: '1'}", "expected int, such as 1. Write a number, without"),
        ("notebook: rows\nbase: {x: 1e1}", r"expected int, such as 1. Write 10"),
        ("notebook: rows\nbase: {x: 1_000}", "without quotes or underscores"),
        ("notebook: rows\nbase: {x: yes}", "expected int"),
        ("notebook: rows\nbase: {x: 1}\ngrid: {x: 2}", "grid: x is 2; expected a list"),
        ("notebook: rows\nbase: {x: 1, x: 2}", "the key 'x' stands there twice"),
        ("notebook: rows\nbase: {seed: 1}", "list the seeds under `seeds`"),
        ("notebook: rows\nbase: {output_dir: a}", "output_dir is the run's own folder"),
        ("notebook: rows\nseeds: [1, 1]", "different whole numbers"),
        ("notebook: rows\nseeds: 3", "expected a list"),
        ("notebook: rows\nlist: [{x: 1}, {x: 1}]", "two runs would be called 'x=1'"),
        ("notebook: rows\nlist: [{name: ../up}]", "names no folder"),
        ("notebook: rows\nreference: z", "reference is 'z'; the runs are run"),
        ("notebook: rows\ngpus: -1", "gpus is -1"),
        ("notebook: rows\ntimeout: soon", "timeout is 'soon'"),
        ("base: {x: 1, z: 1}", "no step refers to .{z}"),
        ("list: [{name: n, x: 1, skip: [c]}]", r"skip is \['c'\]; the steps are a, b"),
        ("- 1", "expected keys"),
        ("a: [", "no YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_fix(tmp_path, text, says):
    row_notebook(tmp_path)
    path = sweep_file(tmp_path, text)
    if text.startswith(("base: {x: 1, z", "list: [{name: n, x")):
        path = chain(tmp_path, text)
    with pytest.raises(ValueError, match=says):
        prepare_sweep(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ("{x: '${y}'}", "is unknown"),
        ("{x: '${xx}'}", r"do you mean \$\{x\}"),
        ("{x: '${b}'}", "a does not come after b"),
        ("{x: '${a}'}", "a does not come after a"),
        ("{names: ['${b@other}']}", "the runs are run"),
    ],
)
def test_wrong_references_are_refused(tmp_path, parameters, says):
    steps = (
        f"  a: {{notebook: rows, parameters: {parameters}}}\n"
        "  b: {notebook: rows, parameters: {x: '${x}'}}\n"
    )
    with pytest.raises(ValueError, match=says):
        prepare_sweep(chain(tmp_path, "", steps), tmp_path / "out")


def test_circles_are_refused(tmp_path):
    path = chain(tmp_path, "base: {x: '${y}', y: '${x}'}")
    with pytest.raises(ValueError, match="refers to itself"):
        prepare_sweep(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("preset: ar_unifrom", "there is no preset 'ar_unifrom'; choose one of grpo"),
        ("task: aime", "there is no task 'aime'"),
        ("budgets: [48, 24]", "budgets must .*increase"),
        ("settings: {num_itterations: 2}", "num_itterations"),
        ("settings: {use_liger_kernel: true}", "use_liger_kernel is True; expected False"),
        ("num_generations: 1", "num_generations is 1"),
        ("problems_per_step: 0", "problems_per_step=0 x num_generations=8"),
    ],
)
def test_settings_are_refused_before_anything_runs(tmp_path, line, says, capsys):
    path = sweep_file(tmp_path, f"notebook: 02_train\nbase:\n  {line}\n")
    assert main([str(path), "--dry-run", "--out", str(tmp_path / "out")]) == 2
    assert re.search(says, capsys.readouterr().err)


# --- the plan ------------------------------------------------------------------------------------


def finished(run, seconds=10.0):
    """Leave what a finished run leaves."""
    about = {"hash": run.hash, "made_of": run.made_of}
    write_json(run.folder / "run.json", about)
    write_json(run.folder / "result.json", {**about, "seconds": seconds})


def states(path, out):
    return {one.job.name: one for one in plan_sweep(prepare_sweep(path, out).jobs)}


def finish(path, out, *names):
    runs = {}
    for job in prepare_sweep(path, out).jobs.values():
        runs[job.name] = job.run({name: runs[name].hash for name in job.after})
        if job.name in names:
            finished(runs[job.name])
    return runs


def test_the_plan_tells_what_is_stale_and_which_parameter_changed(tmp_path, monkeypatch):
    steps = "  a: {notebook: rows, parameters: {x: '${x}'}}\n  b: {notebook: more, parameters: {at: '${a}'}}\n"  # noqa: E501
    notebook(tmp_path, "pass", name="more.ipynb", parameters='at: str = ""')
    out = tmp_path / "out"
    path = chain(tmp_path, "list: [{name: p, x: 3}, {name: q, x: 4}]", steps)
    finish(path, out, "p/seed-0/a", "p/seed-0/b")
    now = states(path, out)
    assert [one.state for one in now.values()] == ["done", "done", "new", "new"]
    assert [one.expected for one in now.values()] == [0.0, 0.0, 10.0, 10.0]
    assert plan_line(list(now.values()), 2).startswith("4 runs: 2 done, 2 new. About 0:10 to go")
    path = chain(tmp_path, "list: [{name: p, x: 5}, {name: q, x: 4}]", steps)
    now = states(path, out)
    assert (now["p/seed-0/a"].state, now["p/seed-0/a"].why) == ("stale", "x 3 → 5")
    # What reads a changed run is stale too, though none of its own parameters changed.
    assert (now["p/seed-0/b"].state, now["p/seed-0/b"].why) == ("stale", "p/seed-0/a changed")
    path = chain(tmp_path, "list: [{name: p, x: 3}, {name: q, x: 4}]", steps)
    assert states(path, out)["p/seed-0/b"].state == "done"
    monkeypatch.setattr("anytime_lab.run.notebook.versions", lambda: {**versions(), "torch": "9.0"})
    now = states(path, out)["p/seed-0/a"]
    assert now.state == "stale" and re.fullmatch('torch ".*" → "9.0"', now.why)


def test_the_plan_tells_failed_and_begun_runs(tmp_path):
    out = tmp_path / "out"
    path = chain(tmp_path)
    runs = finish(path, out)
    a, b = runs.values()
    write_json(a.folder / "run.json", {"hash": a.hash, "made_of": a.made_of})
    write_json(a.folder / "progress.json", {"done": 3, "total": 12, "unit": "rows"})
    write_json(b.folder / "run.json", {"hash": b.hash, "made_of": b.made_of})
    write_json(b.folder / "failure.json", {"hash": b.hash, "reason": "ValueError: no"})
    now = states(path, out)
    assert [(one.state, one.why) for one in now.values()] == [
        ("begun", "3 of 12 rows"),
        ("failed", "ValueError: no"),
    ]


def test_a_changed_notebook_and_a_moved_folder(tmp_path):
    path = row_notebook(tmp_path)
    folder = tmp_path / "one" / "run"
    run = NotebookRun(path, {"output_dir": str(folder), "x": 2}, folder)
    moved = tmp_path / "two" / "run"
    assert run.hash == NotebookRun(path, {"output_dir": str(moved), "x": 2}, moved).hash
    before = run.made_of
    source = json.loads(path.read_text())
    source["cells"][1]["source"] = "pass"
    path.write_text(json.dumps(source))
    after = NotebookRun(path, {"output_dir": str(folder), "x": 2}, folder).made_of
    assert told_changes(before, after) == ["the notebook's code"]
    assert told_changes({}, after) == ["made by an older anytime_lab"]
    longer = NotebookRun(path, {"x": 2}, folder, timeout=5).made_of
    assert longer == NotebookRun(path, {"x": 2}, folder).made_of, "a limit changes no result"


def test_only_takes_what_is_asked_for_and_what_that_needs(tmp_path):
    steps = "  a: {notebook: rows, parameters: {x: '${x}'}}\n  b: {notebook: more, parameters: {at: '${a}'}}\n"  # noqa: E501
    notebook(tmp_path, "pass", name="more.ipynb", parameters='at: str = ""')
    path = chain(tmp_path, "list: [{name: p, x: 3}, {name: q, x: 4}]\nseeds: [0, 1]", steps)
    chosen = prepare_sweep(path, tmp_path, ["q/seed-1/b"]).chosen
    assert [job.name for job in chosen.values()] == ["q/seed-1/a", "q/seed-1/b"]
    assert len(prepare_sweep(path, tmp_path, ["q"]).chosen) == 4
    assert len(prepare_sweep(path, tmp_path, ["*/seed-0/a", "p/seed-1/*"]).chosen) == 4
    with pytest.raises(ValueError, match="no run matches z; there are p/seed-0/a"):
        prepare_sweep(path, tmp_path, ["z"])
