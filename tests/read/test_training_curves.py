"""metrics.jsonl → tidy frames: which steps, which means, which runs may be compared."""

import pandas as pd
import pytest

from anytime_lab.read.training import (
    read_metrics,
    trained_at_fewer,
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


def test_a_run_scored_at_one_budget_has_no_anytime_accuracy_beside_others():
    runs = {"grpo": metrics(drop=["score/24"]), "ar": metrics()}
    assert trained_at_fewer(runs) == ["grpo"]
    told = training_frame(runs)
    assert values(told, "grpo", "anytime accuracy") == []
    assert len(values(told, "ar", "anytime accuracy")) == 3
    assert len(values(told, "grpo", "final accuracy")) == 3
    assert trained_at_fewer({"grpo": runs["grpo"]}) == []
    assert trained_at_fewer({}) == []


def test_missing_columns_and_missing_values():
    told = training_frame({"a": metrics(drop=["seconds"], final_accuracy=None)})
    assert told["seconds"].isna().all()
    assert told.loc[told["measure"] == "final accuracy", "value"].isna().all()
    with pytest.raises(ValueError, match=r"run 'a' lack \['final_accuracy'\]"):
        training_frame({"a": metrics(drop=["final_accuracy"])})


def test_variance_is_the_mean_of_the_last_steps():
    frame = metrics(3)
    frame["variance/corr/brpo/24"] = [0.0, 0.5, 0.7]
    frame["variance/ratio/brpo/24"] = [None, 0.4, None]
    frame["variance/corr/progress/96"] = [0.1, 0.2, 0.4]
    told = variance_frame(frame, last=2).set_index(["baseline", "measure", "budget"])
    assert told.loc[("brpo", "corr", 24), "value"] == pytest.approx(0.6)
    assert told.loc[("brpo", "ratio", 24), "value"] == pytest.approx(0.4)
    assert told.loc[("brpo", "ratio", 24), "steps"] == 1
    assert told.loc[("progress", "corr", 96), "value"] == pytest.approx(0.3)
    with pytest.raises(ValueError, match="no variance diagnostics"):
        variance_frame(metrics())
