"""A study over seeds → effects, by hand-worked numbers."""

import math
import shutil

import numpy as np
import pandas as pd
import pytest
from made_runs import write_run

from anytime_lab.read.claims import (
    Claim,
    Effect,
    Study,
    budget_frame,
    claim_frame,
    claim_table,
    course_frame,
    effect_of,
    exit_curves,
    exit_frame,
    gather_study,
    open_study,
    seeds_needed,
    variance_course,
    verdict,
)
from anytime_lab.read.curves import accuracy_curve
from anytime_lab.store.files import RunFolderError, append_jsonl, read_json, write_json
from anytime_lab.store.records import read_records

PROBLEMS = 4


def study(runs):
    """runs: name → seed → [(update, seconds, flops, right at 24, right at 96, tokens)]."""
    answers, costs = [], []
    for run, seeds in runs.items():
        for seed, checkpoints in seeds.items():
            for update, seconds, flops, small, large, tokens in checkpoints:
                for problem in range(PROBLEMS):
                    row = {"24": small, "96": large, "problem": problem, "tokens": tokens}
                    answers.append({"run": run, "seed": seed, "update": update} | row)
                if update:
                    of = {"run": run, "seed": seed, "update": update}
                    costs.append({**of, "seconds": seconds, "flops": flops})
    nothing = pd.DataFrame(columns=["run", "seed"])
    return Study(pd.DataFrame(answers), pd.DataFrame(costs), nothing, nothing)


@pytest.fixture
def two():
    """AR learns twice as much an update as GRPO, at four times its time."""
    start = [(0, 0, 0, 0.2, 0.6, 80.0)]
    return study(
        {
            "start": {0: start},
            "GRPO": {
                s: [(10, 5.0, 10.0, 0.3 + d, 0.7, 70.0), (20, 10.0, 20.0, 0.4 + d, 0.8, 60.0)]
                for s, d in ((0, 0.0), (1, 0.02))
            },
            "AR": {
                s: [(10, 20.0, 20.0, 0.4, 0.8, 60.0), (20, 40.0, 40.0, 0.6, 1.0, 40.0)]
                for s in (0, 1)
            },
        }
    )


def test_runs_are_compared_at_the_most_that_both_have_spent(two):
    claim = Claim("a", "AR above GRPO", "AR", "GRPO")
    frame = claim_frame(two, [claim]).set_index("axis")
    assert frame["cost"].to_dict() == {"updates": 20, "seconds": 10.0, "flops": 20.0}
    # at 20 updates: (0.6 + 1.0) / 2 against (0.4 + d + 0.8) / 2, d = 0 and 0.02
    assert frame["effect"]["updates"] == pytest.approx(0.195)
    # after 10 s AR is half-way from the start to its first checkpoint: 0.3 and 0.7
    assert frame["effect"]["seconds"] == pytest.approx(0.5 - 0.605)
    assert frame["effect"]["flops"] == pytest.approx(0.6 - 0.605)
    assert frame["verdict"]["updates"] == "holds"
    # two seeds, 1 degree of freedom: t = 12.706; the problems are all alike
    half = 12.7062 * math.sqrt(2 * 0.005**2) / math.sqrt(2)
    assert frame["high"]["updates"] - 0.195 == pytest.approx(half, rel=1e-4)


def test_a_measure_takes_its_budgets_or_the_tokens(two):
    told = {
        measure: claim_frame(two, [Claim("a", measure, "AR", "GRPO", measure)])["effect"][0]
        for measure in ("small", "final", "length", "at 24")
    }
    expected = {"small": 0.19, "final": 0.2, "length": -20.0, "at 24": 0.19}
    assert told == pytest.approx(expected)


def test_claims_on_runs_that_are_not_there_are_left_out(two):
    assert claim_frame(two, [Claim("g", "a specialist", "GRPO at 24", "AR")]).empty
    assert claim_frame(two, [Claim("g", "a budget never asked at", "GRPO", "AR", "at 48")]).empty


def test_an_interval_joins_seeds_and_problems():
    values = np.array([[0.0, 0.2, 0.1], [0.3, 0.5, 0.4]])
    told = effect_of(values)
    seeds = 12.7062 * math.sqrt(2 * 0.15**2) / math.sqrt(2)  # means 0.1 and 0.4, t of 1
    problems = 4.3027 * 0.1 / math.sqrt(3)  # means 0.15, 0.35, 0.25, t of 2
    half = math.hypot(seeds, problems)
    assert (told.value, told.seeds) == (pytest.approx(0.25), 2)
    assert (told.low, told.high) == pytest.approx((0.25 - half, 0.25 + half), rel=1e-4)
    assert math.isnan(effect_of(values[:1]).low)


def test_intervals_hold_as_often_as_they_say():
    draws = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        truth, problems = 0.03, draws.normal(0, 0.3, 100)
        seeds = draws.normal(0, 0.02, (5, 1))
        told = effect_of(truth + seeds + problems + draws.normal(0, 0.4, (5, 100)))
        held += told.low <= truth <= told.high
    assert 0.94 <= held / 400 <= 1.0


def test_seeds_needed_are_the_fewest_that_show_the_difference():
    # sd 0.02 for 2 points: (t(.975, n - 1) + t(.8, n - 1)) / sqrt(n) falls to 1 at n = 10
    # (9: 2.306 + 0.889 over 3 = 1.065; 10: 2.262 + 0.883 over 3.162 = 0.995)
    assert seeds_needed(0.02) == 10
    assert seeds_needed(1e-6) == 2
    with pytest.raises(ValueError, match="1,000 seeds"):
        seeds_needed(10.0)


@pytest.mark.parametrize(
    "low, high, sign, words",
    [
        (0.01, 0.03, 1, "holds"),
        (-0.03, -0.01, 1, "the other way"),
        (-0.03, -0.01, -1, "holds"),
        (-0.01, 0.03, 1, "not seen"),
        (-0.01, 0.03, 0, "no difference seen"),
        (0.01, 0.03, 0, "above"),
        (math.nan, math.nan, 1, "one seed: no interval"),
    ],
)
def test_a_verdict_is_read_off_the_interval(low, high, sign, words):
    assert verdict(Effect(0.0, low, high, 0.01, 5), sign) == words


def test_a_course_begins_at_the_start(two):
    frame = course_frame(two, ["GRPO"], "seconds", "anytime")
    assert frame["cost"].tolist() == [0.0, 5.0, 10.0]
    assert frame["value"].tolist() == pytest.approx([0.4, 0.505, 0.605])


def test_curves_are_at_an_equal_cost_over_the_tokens_spent(two):
    frame = budget_frame(two, ["GRPO", "AR"], "updates").set_index("run")
    assert frame["value"]["AR"].tolist() == pytest.approx([0.6, 1.0])  # at 24 and at 96
    assert frame["cost"]["AR"].tolist() == pytest.approx([24.0, 40.0])


def test_a_table_says_points_and_tokens(two):
    claims = [Claim("a", "above", "AR", "GRPO"), Claim("f", "shorter", "AR", "GRPO", "length", -1)]
    table = claim_table(claim_frame(two, claims)).set_index("part")
    assert table["at equal updates"]["(a)"].startswith("+19.5 [+")
    assert table["at equal updates"]["(f)"].startswith("−20.0 tokens [")


def evaluation(folder, draws):
    write_run(folder, draws.random((5, 2, 2, 1)) < 0.5, budgets=(10, 20))
    write_json(folder / "manifest.json", read_json(folder / "manifest.json") | {"parameters": 1000})


def made_sweep(folder):
    """Two seeds of a run of two checkpoints, a run that went on from it, a start, and one begun."""
    draws = np.random.default_rng(1)
    for run, model in (("AR", "embedded"), ("on", "AR")):
        for seed in (0, 1):
            train = folder / run / f"seed-{seed}" / "train"
            model_of = str(folder / model / f"seed-{seed}" / "train" / "model")
            train.mkdir(parents=True)
            given = {"model": "embedded" if model == "embedded" else model_of}
            write_json(train / "run.json", {"parameters": given})
            for step in (1, 2, 3, 4):
                line = {"step": step, "cpu_seconds": 2.0 * step, "seconds": 9.0 * step}
                line |= {f"variance/ratio/brpo/{b}": b / 100 + step for b in (10, 20)}
                line |= {"total/thinking_tokens": 100 * step, "total/summary_tokens": 20 * step}
                append_jsonl(train / "metrics.jsonl", line | {"total/packed_tokens": 300 * step})
            course = train.parent / "course"
            for update in (2, 4):
                evaluation(course / f"checkpoint-{update}", draws)
            write_json(course / "result.json", {})
    start = folder / "start" / "seed-0" / "course"
    evaluation(start, draws)
    write_json(start / "result.json", {})
    (folder / "begun" / "seed-0" / "course").mkdir(parents=True)
    return folder


def test_a_sweep_is_gathered_into_small_files(tmp_path, monkeypatch):
    sweep = made_sweep(tmp_path / "sweep")
    monkeypatch.chdir(tmp_path)
    found = open_study("sweep", "study")
    assert found.runs == {"AR": [0, 1], "on": [0, 1]}
    costs = found.costs.set_index(["run", "seed", "update"])
    # 4 updates: 480 sampled tokens at 2 and 1,200 packed ones at 6 FLOPs a parameter
    assert costs["flops"]["AR", 0, 4] == 1000 * (2 * 480 + 6 * 1200)
    assert costs["seconds"]["AR", 0, 4] == 8.0
    # what went on from another begins with that
    assert costs["seconds"]["on", 1].to_dict() == {2: 4.0, 4: 8.0, 6: 8.0 + 4.0, 8: 8.0 + 8.0}
    assert (found.values["on", 1, 4] == found.values["AR", 1, 4]).all()
    assert costs["flops"]["on", 0, 8] == 2 * costs["flops"]["AR", 0, 4]
    records = read_records(sweep / "AR" / "seed-1" / "course" / "checkpoint-4")
    plain = accuracy_curve(records)["accuracy"]
    right = found.values["AR", 1, 4][:, :-1]
    assert right.mean(axis=0) == pytest.approx(plain.to_numpy())
    assert found.values["start", 0, 0].shape == (5, 3)
    assert set(found.exits["run"]) == {"AR", "on", "start"}
    ratios = variance_course(found, "AR").set_index("cost")["value"]
    assert ratios.to_dict() == pytest.approx({2: 1.5 + 0.2, 4: 3.5 + 0.2})
    assert exit_frame(found, ["AR"])["seeds"].tolist() == [2, 2]
    last = found.exits[(found.exits["run"] == "AR") & (found.exits["policy"] == "agreement")]
    curve = exit_curves(found, "AR").set_index("run").loc[["AR, agreement"]]
    by_place = [
        part[["tokens", "accuracy"]].mean() for _, part in last.groupby("setting", sort=False)
    ]
    assert curve[["cost", "value"]].to_numpy() == pytest.approx(np.array(by_place))


def test_of_an_earlier_training_that_was_not_evaluated_the_costs_count(tmp_path):
    sweep = made_sweep(tmp_path / "sweep")
    for seed in (0, 1):
        shutil.rmtree(sweep / "AR" / f"seed-{seed}" / "course")
    found = open_study(sweep, tmp_path / "study")
    costs = found.costs.set_index(["run", "seed", "update"])["seconds"]
    assert found.runs == {"on": [0, 1]}
    assert costs["on", 1].to_dict() == {6: 8.0 + 4.0, 8: 8.0 + 8.0}


def test_runs_on_other_problems_are_refused(tmp_path):
    sweep = made_sweep(tmp_path / "sweep")
    place = sweep / "on" / "seed-1" / "course" / "checkpoint-4"
    write_run(place, np.ones((5, 2, 2, 1)), budgets=(10, 20), problems=[*"abcde"])
    with pytest.raises(RunFolderError, match="checkpoint-4 was evaluated on other problems"):
        gather_study(sweep, tmp_path / "study")


def test_what_an_earlier_version_trained_is_told(tmp_path):
    sweep = made_sweep(tmp_path / "sweep")
    (sweep / "AR" / "seed-odd" / "course").mkdir(parents=True)  # not ours: left alone
    gather_study(sweep, tmp_path / "study")
    metrics = sweep / "on" / "seed-0" / "train" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("total/packed_tokens", "other"))
    with pytest.raises(RunFolderError, match="does not tell total/packed_tokens: it was trained"):
        gather_study(sweep, tmp_path / "study")


def test_a_table_of_another_kind_is_told(tmp_path):
    gather_study(made_sweep(tmp_path / "sweep"), tmp_path / "study")
    pd.DataFrame({"run": ["AR"]}).to_parquet(tmp_path / "study" / "costs.parquet")
    with pytest.raises(RunFolderError, match=r"costs.parquet lacks flops, seconds, seed, update"):
        open_study(tmp_path / "study")


def test_what_is_no_study_is_told(tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "answers.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunFolderError, match="holds no whole study"):
        open_study(tmp_path / "study")
    with pytest.raises(RunFolderError, match="holds no study, and no run with a result"):
        open_study(tmp_path, tmp_path / "x")
