"""The run folder: whole files or none, and a sentence for every folder that cannot be read."""

import pyarrow.parquet as pq
import pytest

from anytime_lab.store.files import (
    RunFolderError,
    remove_leftovers,
    write_json,
)
from anytime_lab.store.records import (
    COLUMNS,
    FORMAT,
    finished_chunks,
    part_path,
    read_manifest,
    read_records,
    read_thinkings,
    write_part,
)


def record(problem="p", sample=0, budget=4, **changes):
    row = {
        "problem_id": problem,
        "sample": sample,
        "budget": budget,
        "summary": 0,
        "cut": budget,
        "thinking_tokens": 8,
        "thinking_end": "closed",
        "summary_tokens": 2,
        "finish": "eos",
        "answer": "1",
        "score": 1.0,
        "correct": True,
        "reason": "correct",
        "logprob": -0.5,
        "summary_text": "\\boxed{1}",
    }
    return row | changes


def thinking(problem="p", sample=0):
    return {
        "problem_id": problem,
        "sample": sample,
        "question": "1?",
        "gold": "1",
        "thinking": "ab",
        "token_ends": [1, 2],
        "tokens": 2,
        "end": "closed",
    }


@pytest.fixture
def run_dir(tmp_path):
    write_json(tmp_path / "manifest.json", {"format": FORMAT, "chunks": 2})
    for chunk in range(2):
        write_part(tmp_path, "thinkings", chunk, [thinking(sample=chunk)])
        rows = [record(sample=chunk), record(sample=chunk, budget=8, answer=None, score=None)]
        write_part(tmp_path, "records", chunk, rows)
    return tmp_path


def test_records_come_back_as_they_were_written(run_dir):
    frame = read_records(run_dir)
    assert list(frame.columns) == [column.name for column in COLUMNS["records"]]
    assert frame["sample"].tolist() == [0, 0, 1, 1]
    assert frame["answer"].isna().tolist() == [False, True, False, True]
    assert frame["score"].isna().tolist() == [False, True, False, True]
    assert frame["problem_id"].astype(str).unique().tolist() == ["p"]
    assert read_thinkings(run_dir)["token_ends"].map(list).tolist() == [[1, 2], [1, 2]]


def test_only_the_columns_asked_for_are_read(run_dir):
    assert list(read_records(run_dir, ["budget", "correct"]).columns) == ["budget", "correct"]
    with pytest.raises(ValueError, match="no column.*grade"):
        read_records(run_dir, ["grade"])


def test_labels_stay_categories_when_parts_know_different_ones(run_dir):
    write_part(run_dir, "records", 1, [record(problem="q")])
    frame = read_records(run_dir)
    assert frame["problem_id"].dtype == "category"
    assert frame["problem_id"].tolist() == ["p", "p", "q"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(RunFolderError, match="not a folder"):
        read_records(tmp_path / "none")


def test_an_empty_folder_is_called_empty(tmp_path):
    with pytest.raises(RunFolderError, match="is empty"):
        read_records(tmp_path)


def test_a_foreign_folder_is_told_by_what_it_holds(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(RunFolderError, match="holiday.jpg"):
        read_records(tmp_path)
    write_json(tmp_path / "manifest.json", {"format": "other 3"})
    with pytest.raises(RunFolderError, match="other 3"):
        read_records(tmp_path)
    write_json(tmp_path / "manifest.json", [1])
    with pytest.raises(RunFolderError, match="list"):
        read_manifest(tmp_path)


def test_a_torn_manifest_is_an_error_with_its_path(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format"')
    with pytest.raises(
        RunFolderError,
        match="manifest.json cannot be read as JSON.*Put a copy of it back, or evaluate into a new",
    ):
        read_records(tmp_path)


def test_a_run_that_still_writes_is_partial_and_can_be_read_as_such(run_dir):
    part_path(run_dir, "records", 1).unlink()
    with pytest.raises(RunFolderError, match="1 of 2 parts"):
        read_records(run_dir)
    assert read_records(run_dir, allow_partial=True)["sample"].tolist() == [0, 0]
    # the thinkings of a chunk come before its records: they are not part of what is finished
    assert read_thinkings(run_dir, allow_partial=True)["sample"].tolist() == [0]
    part_path(run_dir, "records", 0).unlink()
    with pytest.raises(RunFolderError, match="no finished part"):
        read_records(run_dir, allow_partial=True)


def test_a_damaged_part_is_named(run_dir):
    path = part_path(run_dir, "records", 1)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RunFolderError, match="part-00001.parquet is damaged"):
        read_records(run_dir)


def test_a_foreign_part_is_named(run_dir):
    pq.write_table(
        pq.read_table(part_path(run_dir, "thinkings", 0)), part_path(run_dir, "records", 1)
    )
    with pytest.raises(RunFolderError, match="part-00001.parquet.*holds something else"):
        read_records(run_dir)


def test_parts_of_another_run_are_refused(run_dir):
    write_part(run_dir, "records", 7, [record()])
    with pytest.raises(RunFolderError, match=r"does not know: \[7\]"):
        read_records(run_dir)


def test_leftovers_of_a_killed_writer_are_ignored_and_removed(run_dir):
    leftover = part_path(run_dir, "records", 2).with_name("part-00002.parquet.123.tmp")
    leftover.write_bytes(b"PAR1 half")
    assert finished_chunks(run_dir) == {0, 1}
    assert len(read_records(run_dir)) == 4
    remove_leftovers(run_dir)
    assert not leftover.exists()
