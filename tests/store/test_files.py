"""Files that are whole or not there, and sentences whose advice works."""

import csv
import json
import os
import shlex
import subprocess
import time

import numpy as np
import pandas as pd
import pytest

from anytime_lab.store.files import (
    RunFolderError,
    append_jsonl,
    read_json,
    read_jsonl,
    write_csv,
    write_json,
    write_progress,
)


def test_a_write_that_fails_leaves_the_old_file_and_no_leftover(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_json(path, {"old": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match="No space left.*free space"):
        write_json(path, {"new": 2})
    assert read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["result.json"]


def test_json_takes_the_values_that_runs_have(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": np.float32(0.5), "b": float("nan"), "c": {2, 1}, "d": np.arange(2)})
    assert read_json(path) == {"a": 0.5, "b": None, "c": [1, 2], "d": [0, 1]}


def test_a_torn_last_line_is_dropped_and_the_next_line_replaces_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_jsonl(path, {"step": 1})
    with open(path, "a") as file:
        file.write('{"step": 2, "sc')
    assert read_jsonl(path) == [{"step": 1}]
    append_jsonl(path, {"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_file_with_one_torn_line_starts_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"st')
    append_jsonl(path, {"step": 1})
    assert read_jsonl(path) == [{"step": 1}]


def test_time_left_counts_only_what_this_process_did(tmp_path):
    write_progress(tmp_path, "evaluate", 60, 100, "rows", started=time.time() - 10, done_before=50)
    told = json.loads((tmp_path / "progress.json").read_text())
    assert told["seconds_left"] == pytest.approx(40, abs=1)  # 10 rows in 10 s, 40 to go
    write_progress(tmp_path, "evaluate", 50, 100, "rows", started=time.time(), done_before=50)
    assert json.loads((tmp_path / "progress.json").read_text())["seconds_left"] is None


def test_damaged_lines_are_named_and_gone_once_the_advice_is_followed(tmp_path):
    path = tmp_path / "a run's" / "metrics.jsonl"
    path.parent.mkdir()
    path.write_bytes(b'{"step": 1}\nnonsense\n{"step": 3}\n\x80\n{"step": 5}\n{"st')
    with pytest.raises(RunFolderError, match=r"line 2 \(as are 1 more\), is not JSON") as caught:
        read_jsonl(path)
    command = str(caught.value).partition("(sed ")[2].partition(") and go on")[0]
    subprocess.run(["sed", *shlex.split(command)], check=True)
    assert read_jsonl(path) == [{"step": 1}, {"step": 3}, {"step": 5}]


def test_no_cell_of_a_csv_file_begins_a_formula_and_numbers_stay(tmp_path):
    evil = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", " =1", "＝1", "-inf"]
    kept = ["a=1", "-3", "+0.5", "1e-5", "x", ""]
    frame = pd.DataFrame({"=run": [*evil, *kept], "n": -1.5, "k": pd.Categorical(["=a"] * 14)})
    write_csv(tmp_path / "x.csv", frame.assign(missing=pd.array([None] * 14, dtype="Int64")))
    with open(tmp_path / "x.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["'=run", "n", "k", "missing"]
    assert [row[0] for row in rows] == [*(f"'{cell}" for cell in evil), *kept]
    assert {tuple(row[1:]) for row in rows} == {("-1.5", "'=a", "")}


def test_a_tilde_means_the_home_folder_for_all(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_json("~/run/x.json", [1])
    append_jsonl("~/run/m.jsonl", {"step": 1})
    assert read_json("~/run/x.json") == [1] and read_jsonl("~/run/m.jsonl") == [{"step": 1}]
    assert sorted(os.listdir(tmp_path / "run")) == ["m.jsonl", "x.json"]
