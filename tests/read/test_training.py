"""metrics.jsonl → tidy frames: which steps, which means, which runs may be compared."""

import pandas as pd
import pytest

from anytime_lab.read.training import (
    compared_at,
    find_training,
    read_metrics,
    told_compared,
    told_variance,
    training_frame,
    variance_frame,
)
from anytime_lab.store.files import RunFolderError, append_jsonl


def line(step, **changes):
    row = {
        "step": step,
        "loss": -0.01,
        "anytime_accuracy": 0.1 * step,
        "uniform_accuracy": 0.2 * step,
        "final_accuracy": 0.3 * step,
        "thinking/length": 80.0 + step,
        "score/24": 0.1,
        "score/96": 0.3,
        "seconds": 2.5 * step,
    }
    return row | changes


def metrics(steps=3, drop=(), **changes):
    return pd.DataFrame([line(s + 1, **changes) for s in range(steps)]).drop(columns=list(drop))


def values(frame, run, measure, column="value"):
    return frame.loc[(frame["run"] == run) & (frame["measure"] == measure), column].tolist()


def test_steps_come_back_in_order_and_once(tmp_path):
    for step in (1, 3, 2):
        append_jsonl(tmp_path / "metrics.jsonl", line(step))
    append_jsonl(tmp_path / "metrics.jsonl", line(3, loss=7.0))  # repeated after a resume
    append_jsonl(tmp_path / "metrics.jsonl", {"note": "no step"})
    append_jsonl(tmp_path / "metrics.jsonl", {"step": None})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    told = read_metrics(tmp_path)
    assert told["step"].tolist() == [1, 2, 3]
    assert told["loss"].tolist() == [-0.01, -0.01, 7.0]


def test_a_folder_without_steps_is_a_sentence(tmp_path):
    with pytest.raises(RunFolderError, match="does not exist; give the output folder of a train"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss"')
    with pytest.raises(RunFolderError, match="holds no step yet"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n\x00\x00\x00\n{"step": 2}\n')
    with pytest.raises(RunFolderError, match="line 2, is not JSON"):
        read_metrics(tmp_path)


def test_runs_are_found_below_a_folder_but_not_out_of_sight(tmp_path):
    for place in ("a", "b/c", ".hidden/d"):
        append_jsonl(tmp_path / place / "metrics.jsonl", line(1))
    assert list(find_training(tmp_path)) == ["a", "b/c"]
    assert list(find_training({"x": tmp_path / "nowhere"})) == ["x"]


def test_the_running_mean_worked_by_hand():
    told = training_frame({"a": metrics(4)}, window=2)
    assert values(told, "a", "final accuracy") == pytest.approx([0.3, 0.6, 0.9, 1.2])
    assert values(told, "a", "final accuracy", "smooth") == pytest.approx([0.3, 0.45, 0.75, 1.05])
    assert values(told, "a", "thinking length") == [81, 82, 83, 84]
    assert values(told, "a", "thinking length", "seconds") == [2.5, 5, 7.5, 10]
    with pytest.raises(ValueError, match="at least 1 step"):
        training_frame({"a": metrics()}, window=0)


def test_anytime_accuracy_is_weighted_alike_whatever_the_prior_of_training():
    told = training_frame({"a": metrics()})
    assert values(told, "a", "anytime accuracy") == pytest.approx([0.2, 0.4, 0.6])
    older = training_frame({"a": metrics(drop=["uniform_accuracy"])})
    assert values(older, "a", "anytime accuracy") == pytest.approx([0.1, 0.2, 0.3])


def test_runs_are_compared_at_the_budgets_they_share():
    wide = metrics(**{"score/48": 0.9})
    runs = {"two": metrics(), "three": wide}
    assert compared_at(runs) == ([24, 96], [])
    told = training_frame(runs)
    assert values(told, "three", "anytime accuracy") == pytest.approx([0.2] * 3)  # (0.1 + 0.3) / 2
    assert values(told, "two", "anytime accuracy") == pytest.approx([0.2, 0.4, 0.6])
    assert list(told["measure"].unique())[0] == "anytime accuracy"
    assert told_compared(runs).startswith("Anytime accuracy is the mean at 24, 96 tokens")
    assert told_compared({"two": metrics(), "same": metrics()}) == ""


def test_a_run_scored_at_one_budget_has_no_anytime_accuracy_beside_others():
    runs = {"grpo": metrics(drop=["score/24"]), "ar": metrics()}
    assert compared_at(runs) == ([24, 96], ["grpo"])
    told = training_frame(runs)
    assert values(told, "grpo", "anytime accuracy") == []
    assert len(values(told, "ar", "anytime accuracy")) == 3
    assert len(values(told, "grpo", "final accuracy")) == 3
    assert list(told["measure"].unique())[0] == "final accuracy"  # which compares all
    assert "grpo: not scored at 24, 96 tokens" in told_compared(runs)
    assert compared_at({"grpo": runs["grpo"]}) == ([96], [])
    assert compared_at({}) == ([], [])


def test_missing_columns_and_missing_values():
    told = training_frame({"a": metrics(drop=["seconds"], final_accuracy=None)})
    assert told["seconds"].isna().all()
    assert told.loc[told["measure"] == "final accuracy", "value"].isna().all()
    with pytest.raises(ValueError, match=r"run 'a' lack \['final_accuracy'\]"):
        training_frame({"a": metrics(drop=["final_accuracy"])})


def test_variance_is_the_median_of_the_last_steps():
    frame = metrics(4)
    frame["variance/corr/brpo/24"] = [0.0, 0.5, 0.6, 0.9]
    frame["variance/ratio/brpo/24"] = [None, 0.4, None, 121.0]
    frame["variance/ratio/brpo/96"] = [9.0, 1.4, 121.0, 1.6]
    frame["variance/ratio/none/96"] = 1.0  # which takes nothing away
    frame["variance/reached/96"] = [1.0, 0.25, 0.25, 0.5]
    told = variance_frame(frame, last=3).set_index(["baseline", "measure", "budget"])
    assert told.loc[("brpo", "corr", 24), "value"] == pytest.approx(0.6)
    assert told.loc[("brpo", "ratio", 24), "value"] == pytest.approx(60.7)
    assert told.loc[("brpo", "ratio", 24), "steps"] == 2
    assert told.loc[("brpo", "ratio", 96), "value"] == pytest.approx(1.6)
    assert told.loc[("brpo", "ratio", 96), "reached"] == 0.25
    assert "none" not in told.index.get_level_values("baseline")
    said = told_variance(told.reset_index())
    assert "The BRPO (V) baseline is worse than none at 24, 96 tokens" in said[1]
    assert variance_frame(metrics()).empty
    assert "No variance to show" in told_variance(variance_frame(metrics()))[0]
