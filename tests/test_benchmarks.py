"""Benchmarks and your own files: one form, and errors that name the row."""

import json
import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anytime_lab.tasks import files
from anytime_lab.tasks.benchmarks import (
    BENCHMARKS,
    QUESTION_SUFFIX,
    check_golds,
    dataset_card,
    load_benchmark,
    load_problems,
)
from anytime_lab.tasks.catalogue import load_task
from anytime_lab.verify import MathVerifier

ROWS = [
    {"problem": "1+1?", "answer": "2", "id": "a"},
    {"problem": " 1/2+1? ", "answer": "3/2 ", "id": "b"},
]


def written(folder, rows, name="p.jsonl"):
    path = folder / name
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows))
    elif name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        header = list(rows[0])
        lines = [",".join(header), *(",".join(f'"{row[c]}"' for c in header) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.parquet", "p.csv"])
def test_every_kind_of_file_gives_the_same_problems(tmp_path, name):
    made = load_problems(written(tmp_path, ROWS, name))
    assert made["problem_id"][:] == ["a", "b"]
    assert made["question"][:] == ["1+1?", "1/2+1?"]
    assert made["answer"][:] == ["2", "3/2"]
    assert made[0]["prompt"] == [{"role": "user", "content": "1+1?" + QUESTION_SUFFIX}]


def test_columns_can_be_named_and_the_suffix_changed(tmp_path):
    rows = [{"Q": "1+1?", "A": 2.0, "problem": "not this"}]
    path = written(tmp_path, rows)
    made = load_problems(path, columns={"question": "Q", "answer": "A"}, question_suffix=" !")
    assert made[0]["answer"] == "2"
    assert made[0]["prompt"][0]["content"] == "1+1? !"
    assert len(made[0]["problem_id"]) == 12  # of the question


def test_several_answers_make_the_column_one_of_lists(tmp_path):
    rows = [{"problem": "x", "answer": ["1", 2]}, {"problem": "y", "answer": "3"}]
    assert load_problems(written(tmp_path, rows))["answer"][:] == [["1", "2"], ["3"]]


def test_an_object_around_the_list_is_looked_through(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"version": 1, "data": ROWS, "notes": ["x"]}))
    assert len(load_problems(path)) == 2


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"problem": "x"}], r"has the columns \['problem'\], but none for the answer"),
        ([{"answer": "x"}], "none for the question"),
        ([*ROWS, {"problem": "z", "answer": "1", "id": "a"}], r"row 3 has the same id as row 1"),
        ([*ROWS, {"problem": "z", "answer": "1", "id": None}], r"row 3: the id .* is None"),
        ([*ROWS, {"problem": 7, "answer": "1", "id": "c"}], r"row 3: the question .* is 7"),
        ([*ROWS, {"problem": "z", "answer": None, "id": "c"}], r"row 3: the answer .* is None"),
        ([*ROWS, {"problem": "z", "answer": " ", "id": "c"}], r"row 3: the answer .* is empty"),
        ([*ROWS, {"problem": "z", "answer": True, "id": "c"}], r"row 3: the answer .* is True"),
        ([*ROWS, {"problem": "z", "answer": {"a": 1}, "id": "c"}], "row 3: the answer"),
        ([*ROWS, {"problem": "z", "answer": [], "id": "c"}], "row 3: the answer"),
        ([*ROWS, ["not", "an", "object"]], "row 3: found list"),
        ([{"problem": "x", "answer": "1"}] * 2, "row 2 has the same question as row 1"),
    ],
)
@pytest.mark.parametrize("name", ["p.json", "p.jsonl"])
def test_surprising_rows_are_refused_by_number(tmp_path, rows, says, name):
    with pytest.raises(ValueError, match=says):
        load_problems(written(tmp_path, rows, name))


def test_problems_without_an_answer_can_be_left_out(tmp_path):
    rows = [*ROWS, {"problem": "z", "answer": None, "id": "c"}]
    assert len(load_problems(written(tmp_path, rows), drop_unanswered=True)) == 2


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("p.jsonl", b'{"problem": "x", "answer": "1"}\n{"problem": "y', "line 2, column"),
        (
            "p.jsonl",
            b'{"problem": "x", "answer": "1"}\n{"p": "\xff"}\n',
            "line 2: byte 0xff is no UTF-8",
        ),
        ("p.json", b'[{"p": "\xe9"}]', "line 1: byte 0xe9 is no UTF-8"),
        ("p.json", b'{"problem": "x"}\n{"problem": "y"}', "jsonl"),
        ("p.json", b'"text"', "holds a str"),
        ("p.json", b"[]", "holds no problems"),
        ("p.jsonl", b"\n\n", "holds no problems"),
        ("p.csv", b"problem,answer\n", "holds no problems"),
        ("p.csv", b"problem,answer\nx,1,2\n", "row 1 has 1 fields more"),
        ("p.csv", b"problem,answer\nx\n", "row 1 ends before answer"),
        ("p.parquet", b"no parquet", "cannot be read as parquet"),
        ("p.txt", b"x", "expected one of"),
    ],
)
def test_broken_files_are_refused_with_the_place(tmp_path, name, data, says):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=says):
        load_problems(path)


def test_a_line_without_end_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE", 100)
    path = tmp_path / "p.jsonl"
    path.write_text('{"problem": "x", "answer": "1"}\n' + '"' + "x" * 1000)
    with pytest.raises(ValueError, match="line 2 is longer than 100"):
        load_problems(path)


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS[0]).encode())
    assert load_problems(path)["answer"][:] == ["2"]


def test_a_missing_file_and_wrong_column_roles_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        load_problems(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="can map question, answer, problem_id"):
        load_problems(written(tmp_path, ROWS), columns={"prompt": "problem"})


def test_unknown_benchmarks_list_what_exists():
    with pytest.raises(ValueError, match="aime24, amc22_23, math500, minerva, olympiad_bench"):
        load_benchmark("aime25")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_asks_the_hub_for_its_own_columns(monkeypatch, name):
    asked = {}

    def load_dataset(path, config, split, revision):
        asked.update(path=path, config=config, split=split, revision=revision)
        columns = BENCHMARKS[name].columns
        row = {columns["question"]: "1+1?", columns["answer"]: ["2"] if "olympiad" in name else "2"}
        if "problem_id" in columns:
            row[columns["problem_id"]] = 7
        return datasets.Dataset.from_list([row])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    made = load_benchmark(name, revision="abc")
    about = BENCHMARKS[name]
    assert asked == {
        "path": about.path, "config": about.name, "split": about.split, "revision": "abc",
    }  # fmt: skip
    assert made[0]["answer"] == (["2"] if "olympiad" in name else "2")
    assert made.column_names == ["problem_id", "prompt", "question", "answer"]


def test_an_unreachable_hub_says_how_to_pass_a_file(monkeypatch):
    def load_dataset(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ConnectionError, match=r'load_benchmark\("aime24", path="aime24.jsonl"\)'):
        load_benchmark("aime24")


def test_a_changed_repository_is_seen(monkeypatch):
    changed = datasets.Dataset.from_list([{"text": "x"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: changed)
    with pytest.raises(ValueError, match="it has changed"):
        load_benchmark("math500")


def test_a_folder_on_disk_serves_as_the_hub_does(tmp_path, monkeypatch):
    written(tmp_path, [{"problem": "1+1?", "answer": "2", "unique_id": "u"}], "test.jsonl")
    folder = {**BENCHMARKS, "math500": type(BENCHMARKS["math500"])(
        str(tmp_path), "test", BENCHMARKS["math500"].columns)}  # fmt: skip
    monkeypatch.setattr("anytime_lab.tasks.benchmarks.BENCHMARKS", folder)
    assert load_benchmark("math500")["problem_id"][:] == ["u"]


def test_the_card_changes_with_the_rows(tmp_path):
    made = load_problems(written(tmp_path, ROWS))
    card = dataset_card(made, "here", "r1")
    assert (card.source, card.revision, card.problems) == ("here", "r1", 2)
    assert card == dataset_card(made, "here", "r1")
    assert card.sha256 != dataset_card(made.select([1, 0]), "here", "r1").sha256
    assert "here at r1: 2 problems" in card.sentence()


def test_golds_that_cannot_be_graded_are_reported_by_id(tmp_path):
    rows = [*ROWS, {"problem": "z", "answer": "\\frac{1}{", "id": "broken"}]
    verifier = MathVerifier(workers=1)
    try:
        report = check_golds(load_problems(written(tmp_path, rows)), verifier)
        assert list(report.unreadable) == ["broken"]
        assert "1 of 3 golds" in report.sentence()
        whole = check_golds(load_problems(written(tmp_path, ROWS)), verifier)
        assert whole.sentence() == "All 2 golds can be graded."
    finally:
        verifier.close()


def test_tasks_by_name_or_file(tmp_path):
    path = written(tmp_path, ROWS)
    assert load_task(str(path), num_problems=1).problems["problem_id"][:] == ["a"]
    assert "generated (5 problems)" in load_task("countdown", "test", 5).card
    with pytest.raises(ValueError, match="Choose countdown, aime24"):
        load_task("nothing")
    with pytest.raises(ValueError, match="has 2; give 1 to 2"):
        load_task(str(path), num_problems=3)


@pytest.mark.skipif("ANYTIME_LAB_DATA" not in os.environ, reason="ANYTIME_LAB_DATA is not set")
@pytest.mark.parametrize(("name", "count"), [("aime", 30), ("amc", 83), ("math", 500)])
def test_real_problem_sets_load(name, count):
    path = Path(os.environ["ANYTIME_LAB_DATA"]) / f"{name}.json"
    made = load_problems(path)
    assert len(made) == count
    assert all(made["answer"][:])
