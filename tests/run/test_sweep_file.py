"""What a sweep's file may say, and the runs that it means."""

import re

import pytest
import yaml
from made_notebooks import chain, notebook, row_notebook, sweep_file

from anytime_lab.__main__ import main
from anytime_lab.run.notebook import NOTEBOOKS
from anytime_lab.run.sweep import (
    Point,
    model_within,
    prepare_sweep,
    training_seconds,
    updates_within,
)
from anytime_lab.store.files import RunFolderError, append_jsonl, write_json


def test_numbers_are_read_as_people_write_them(tmp_path):
    row_notebook(tmp_path)
    text = "notebook: rows\nbase: {pause: 1e-6}\ngrid: {x: [1, 20]}\nseeds: [0]"
    jobs = prepare_sweep(sweep_file(tmp_path, text), tmp_path / "out").jobs
    assert yaml.safe_load("1e-6") == "1e-6", "the trap that this test is about"
    assert [job.parameters["pause"] for job in jobs.values()] == [1e-6, 1e-6]
    assert [job.name for job in jobs.values()] == ["x=1/seed-0", "x=20/seed-0"]


def test_a_value_may_be_called_as_the_only_notebook_is(tmp_path):
    row_notebook(tmp_path)
    path = sweep_file(tmp_path, "notebook: rows\nbase: {rows: 7}")
    (job,) = prepare_sweep(path, tmp_path / "out").jobs.values()
    assert job.parameters["rows"] == 7
    with pytest.raises(ValueError, match="a cannot be a value .* that name is taken"):
        prepare_sweep(chain(tmp_path, "base: {x: 1, a: 2}"))


def test_batches_are_counted_over_all_processes(tmp_path):
    said = "base: {settings: {per_device_train_batch_size: 4, gradient_accumulation_steps: 1}}"
    path = sweep_file(tmp_path, f"notebook: 02_train\n{said}\nprocesses: 2")
    assert len(prepare_sweep(path, tmp_path / "out").jobs) == 1
    path = sweep_file(tmp_path, f"notebook: 02_train\n{said}")
    with pytest.raises(ValueError, match="divisible by num_generations|no whole number"):
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
        prepare_sweep(sweep_file(tmp_path, "notebook: rows\naccelerate: a.yaml"))


def test_lists_cross_with_the_grid_and_carry_their_own_seeds(tmp_path):
    row_notebook(tmp_path)
    text = (
        "notebook: rows\ngrid: {x: [1, 2]}\nlist: [{name: slow, pause: 1}, {name: fast, "
        "pause: 0.5, seeds: [7]}]\nseeds: [0, 1]"
    )
    jobs = prepare_sweep(sweep_file(tmp_path, text), tmp_path / "out").jobs
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
        "  b: {notebook: more, parameters: {at: '${a}/rows.jsonl', x: '${a.updates_within(x)}'}}\n"
        "  c: {notebook: more, parameters: {at: '${b@first} and ${seed}'}}\n"
    )
    notebook(tmp_path, "pass", name="more.ipynb", parameters='at: str = ""\nx: int = 0')
    path = chain(tmp_path, "list: [{name: first, x: 5}, {name: second, x: 6}]", steps)
    jobs = prepare_sweep(path, tmp_path / "out").jobs
    out = tmp_path / "out"
    a, b = (jobs[Point("second", 0, step)] for step in "ab")
    assert callable(b.parameters) and b.after == (a.name,)
    metrics(a.folder, [1.0, 2.0, 3.0, 8.0])
    assert b.parameters() == {"at": f"{out}/second/seed-0/a/rows.jsonl", "x": 2}
    c = jobs[Point("second", 0, "c")]
    assert c.parameters == {"at": f"{out}/first/seed-0/b and 0"}
    assert c.after == ("first/seed-0/b",)
    order = [job.name for job in jobs.values()]
    assert order.index("first/seed-0/b") < order.index("second/seed-0/c")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("notebook: rows\nsede: [1]", "no key 'sede'; do you mean seeds"),
        ("notebook: row\n", "no notebook 'row'"),
        ("notebook: 2_train", "do you mean 02_train"),
        ("base: {x: 1}", "either `notebook`"),
        ("notebook: rows\nbase: {y: 1}", "no parameter 'y'; there are output_dir, x"),
        ("notebook: rows\nbase: {x: '1'}", "expected int, such as 1. Write a number, without"),
        ("notebook: rows\nbase: {x: 1e1}", r"expected int, such as 1. Write 10"),
        ("notebook: rows\nbase: {x: '1_000'}", "without quotes or underscores"),
        ("notebook: rows\nbase: {x: yes}", "expected int"),
        ("notebook: rows\nbase: {x: 1}\ngrid: {x: 2}", "grid: x is 2; expected a valid list"),
        ("notebook: rows\nbase: {x: 1, x: 2}", 'found duplicate key "x"'),
        ("notebook: rows\nbase: {seed: 1}", "list the seeds under `seeds`"),
        ("notebook: rows\nbase: {output_dir: a}", "output_dir is the run's own folder"),
        ("notebook: rows\nseeds: [1, 1]", "different whole numbers"),
        ("notebook: rows\nseeds: 3", "expected a valid list"),
        ("notebook: rows\nlist: [{x: 1}, {x: 1}]", "two runs would be called 'x=1'"),
        ("notebook: rows\nlist: [{name: ../up}]", "names no folder"),
        (
            "notebook: rows\nseeds: [-1]",
            "seeds is .-1.; expected a list of different whole",
        ),
        ("notebook: rows\nseeds: [4294967296]", "whole numbers from 0 to 4,294,967,295"),
        ("notebook: rows\nlist: [{name: " + "n" * 300 + "}]", "300 bytes long; a folder's name"),
        (
            "notebook: rows\nbase: {names: ['${x}', '${y']}\ngrid: {x: [1]}",
            "does not end",
        ),
        (
            "notebook: rows\nfolder: same\ngrid: {x: [1, 2]}",
            "two runs would lie in same; name",
        ),
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
        ("{x: '${b.seconds}'}", "the facts of training are training_seconds, updates_within"),
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
    assert main(["sweep", str(path), "--dry-run", "--out", str(tmp_path / "out")]) == 2
    assert re.search(says, capsys.readouterr().err)


def metrics(folder, seconds):
    """What a finished training leaves of its time, with checkpoints after updates 1, 2 and 4."""
    for step, spent in enumerate(seconds, start=1):
        append_jsonl(folder / "metrics.jsonl", {"step": step, "seconds": spent})
    for step in (1, 2, 4):
        (folder / f"checkpoint-{step}").mkdir(parents=True)
    write_json(
        folder / "run.json", {"notebook": str(NOTEBOOKS / "02_train.ipynb"), "parameters": {}}
    )
    write_json(folder / "result.json", {"seconds": 60})


def test_equal_time_takes_the_last_checkpoint_within_it(tmp_path):
    run = tmp_path / "run"
    metrics(run, [10.0, 20.0, 30.0, 40.0])
    assert training_seconds(run) == 40.0
    assert [updates_within(run, seconds) for seconds in (39.9, 40.0, 10.0, 9.0)] == [2, 4, 1, 0]
    assert model_within(run, 39.9) == str(run / "checkpoint-2")
    assert model_within(run, 9.0) == "embedded"  # nothing yet but the start


@pytest.mark.parametrize(("grpo", "model"), [(25.0, "train_ar/checkpoint-2"), (9.0, "embedded")])
def test_a_step_reads_what_another_had_made_by_then(tmp_path, grpo, model):
    sweep = prepare_sweep(NOTEBOOKS.parent / "experiments/lab.yaml", tmp_path)
    jobs = {job.name: job for job in sweep.jobs.values()}
    job = jobs["evaluate_ar_equal_time"]
    assert set(job.after) == {"train_ar", "train_grpo"}
    with pytest.raises(RunFolderError, match="result.json does not exist"):
        job.run()
    metrics(tmp_path / "train_ar", [10.0, 20.0, 30.0, 40.0])
    metrics(tmp_path / "train_grpo", [grpo / 4, grpo / 3, grpo / 2, grpo])
    expected = model if model == "embedded" else str(tmp_path / model)
    assert job.run().parameters["model"] == expected
    made = "0 updates" if model == "embedded" else "2 updates"
    notes = " ".join(sweep.told(note, results=True) for note in sweep.file.notes)
    assert f"had made {made} by then" in notes and f"GRPO trained for {grpo} s, 60 up" in notes


def test_the_main_jobs_runs_differ_in_the_preset_only(tmp_path):
    sweep = prepare_sweep(NOTEBOOKS.parent / "experiments/lab.yaml", tmp_path, seeds=[3])
    jobs = {job.name: job.parameters for job in sweep.jobs.values()}
    grpo, ar = jobs["train_grpo"], jobs["train_ar"]
    assert {k for k in grpo if grpo[k] != ar[k]} == {"preset", "output_dir"}
    first, second = jobs["evaluate_start"], jobs["evaluate_grpo"]
    assert {k for k in first if first[k] != second[k]} == {"model", "output_dir"}
    assert {said["seed"] for said in (grpo, ar, first, second)} == {3}


def test_scales_and_seeds_change_what_the_file_says(tmp_path):
    path = NOTEBOOKS.parent / "experiments/lab.yaml"
    sweep = prepare_sweep(path, tmp_path, scale="smoke", seeds=[7])
    jobs = {job.name: job.parameters for job in sweep.jobs.values()}
    assert sweep.name == "lab-smoke"
    assert (jobs["train_ar"]["max_steps"], jobs["train_ar"]["problems_per_step"]) == (4, 3)
    assert jobs["train_ar"]["seed"] == 7
    with pytest.raises(ValueError, match="no scale 'large'; there are smoke"):
        prepare_sweep(path, scale="large")
    with pytest.raises(ValueError, match=r"seeds is \[-1\]; expected a list of different whole"):
        prepare_sweep(path, seeds=[-1])


def test_a_grid_of_millions_is_told_at_once(tmp_path):
    row_notebook(tmp_path)
    values = list(range(1000))
    path = sweep_file(
        tmp_path, f"notebook: rows\ngrid: {{x: {values}, rows: {values}, pause: {values}}}"
    )
    with pytest.raises(ValueError, match="make 1,000,000,000 runs; a sweep takes 10,000"):
        prepare_sweep(path)
