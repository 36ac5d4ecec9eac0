"""How a sweep's plan stands, and what is chosen of it."""

import re
import statistics

import pytest
from made_notebooks import chain, notebook
from made_runs import random_right, write_run

from anytime_lab.run.process import PACKAGES
from anytime_lab.run.sweep import compare, plan_line, prepare_sweep
from anytime_lab.store.files import RunFolderError, write_json
from anytime_lab.store.manifest import versions_of
from anytime_lab.store.records import read_records


def finished(run, seconds=10.0):
    """Leave what a finished run leaves."""
    about = {"hash": run.hash, "made_of": run.made_of}
    write_json(run.folder / "run.json", about)
    write_json(run.folder / "result.json", {**about, "seconds": seconds})


def states(path, out):
    return {one.job.name: one for one in prepare_sweep(path, out).plan().values()}


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
    assert [one.status for one in now.values()] == ["done", "done", "new", "new"]
    assert [one.expected for one in now.values()] == [0.0, 0.0, 10.0, 10.0]
    assert plan_line(list(now.values()), 2).startswith("4 runs: 2 done, 2 new. About 0:10 to go")
    path = chain(tmp_path, "list: [{name: p, x: 5}, {name: q, x: 4}]", steps)
    now = states(path, out)
    assert (now["p/seed-0/a"].status, now["p/seed-0/a"].message) == ("stale", "x 3 → 5")
    # What reads a changed run is stale too, though none of its own parameters changed.
    assert (now["p/seed-0/b"].status, now["p/seed-0/b"].message) == ("stale", "p/seed-0/a changed")
    path = chain(tmp_path, "list: [{name: p, x: 3}, {name: q, x: 4}]", steps)
    assert states(path, out)["p/seed-0/b"].status == "done"
    other = {**versions_of(PACKAGES), "torch": "9.0"}
    monkeypatch.setattr("anytime_lab.run.process.versions_of", lambda _: other)
    now = states(path, out)["p/seed-0/a"]
    assert now.status == "stale" and re.fullmatch('torch ".*" → "9.0"', now.message)


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
    assert [(one.status, one.message) for one in now.values()] == [
        ("begun", "3 of 12 rows"),
        ("failed", "ValueError: no"),
    ]


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


def test_a_plan_passes_no_control_characters_and_no_secrets(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    path = chain(tmp_path, 'title: "\\e[2J[red]http://me:hunter2@host"\nbase: {x: 3}')
    prepared = prepare_sweep(path, tmp_path / "out")
    job = next(iter(prepared.jobs.values()))
    failed = {"hash": job.run().hash, "reason": "ValueError: \x1b]0;owned\x07 at http://a:pw@b"}
    write_json(job.folder / "failure.json", failed)
    prepared.show()
    told = capsys.readouterr().out
    assert "\x1b" not in told and "\x07" not in told
    assert "[red]http://***@host" in told and "hunter2" not in told and "a:pw" not in told


def test_the_comparison_takes_the_mean_over_seeds_and_tells_their_spread(tmp_path):
    out = tmp_path / "out"
    steps = "  a: {notebook: rows, parameters: {x: '${x}'}}\n"
    entries = "list: [{name: p, x: 3, seeds: [0]}, {name: q, x: 4}]\nseeds: [0, 1]"
    path = chain(tmp_path, entries, steps)
    runs = finish(path, out, "p/seed-0/a", "q/seed-0/a", "q/seed-1/a")
    means = []
    for seed, run in enumerate(runs.values()):
        write_run(run.folder, random_right(p=6, seed=seed))
        means.append(read_records(run.folder)["score"].mean())
    summary = compare(prepare_sweep(path, out)).set_index("run")
    assert dict(summary["seeds"]) == {"p": 1, "q": 2}
    assert summary["anytime"].tolist() == pytest.approx([means[0], (means[1] + means[2]) / 2])
    assert summary.loc["q", "anytime_seed_sd"] == pytest.approx(statistics.stdev(means[1:]))
    assert "Training seeds" in (out / "comparison.html").read_text()


def test_a_damaged_part_of_a_finished_run_is_told_with_a_way_on_that_works(tmp_path):
    out = tmp_path / "out"
    steps = "  a: {notebook: rows, parameters: {x: '${x}'}}\n"
    path = chain(tmp_path, "list: [{name: p, x: 3}]", steps)
    run = finish(path, out, "p/seed-0/a")["p/seed-0/a"]
    write_run(run.folder, random_right(p=3))
    assert compare(prepare_sweep(path, out))["run"].tolist() == ["p"]
    (part,) = run.folder.glob("records/*.parquet")
    part.write_bytes(b"x")
    with pytest.raises(RunFolderError, match=r"damaged .* delete the result\.json of its folder"):
        compare(prepare_sweep(path, out))
    (run.folder / "result.json").unlink()
    assert states(path, out)["p/seed-0/a"].status != "done"
