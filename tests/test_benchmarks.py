"""Benchmarks and your own files: one form, and errors that name the row."""

import csv
import dataclasses
import functools
import json
import os
import warnings
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anytime_lab.tasks import benchmarks, files
from anytime_lab.tasks.benchmarks import (
    BENCHMARKS,
    QUESTION_SUFFIX,
    check_golds,
    dataset_card,
)
from anytime_lab.tasks.benchmarks import load_benchmark as load_benchmark_checked
from anytime_lab.tasks.benchmarks import load_problems as load_problems_checked
from anytime_lab.tasks.catalogue import load_task
from anytime_lab.verify import Grade, MathVerifier

# Golds are checked by workers, which take their time to start: only where a test is about it.
load_problems = functools.partial(load_problems_checked, check=False)
load_benchmark = functools.partial(load_benchmark_checked, check=False)
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


@pytest.mark.parametrize("role", ["question", "prompt"])
def test_columns_can_be_named_and_the_suffix_changed(tmp_path, role):
    rows = [{"Q": "1+1?", "A": 2.0, "problem": "not this", "n": 7.0}]
    path = written(tmp_path, rows)
    columns = {role: "Q", "answer": "A", "problem_id": "n"}
    made = load_problems(path, columns=columns, question_suffix=" !")
    assert made[0] == {
        "problem_id": "7",
        "prompt": [{"role": "user", "content": "1+1? !"}],
        "question": "1+1?",
        "answer": "2",
    }


def test_ids_made_of_questions_depend_on_the_question_alone(tmp_path):
    rows = [{"problem": "x", "answer": "1", "id": 1}, {"problem": "y", "answer": "2", "id": 1}]
    path = written(tmp_path, rows)
    with pytest.raises(ValueError, match=r"row 2 has the same id as row 1 .*problem_id.: None"):
        load_problems(path)
    made = load_problems(path, columns={"problem_id": None})["problem_id"][:]
    changed = [{"answer": "3", "problem": " y "}, {"problem": "z", "answer": "4"}]
    again = load_problems(written(tmp_path, changed, "q.csv"))["problem_id"][:]
    assert made[0] != made[1] == again[0] and all(len(one) == 12 for one in made)


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
        ([*ROWS, {"problem": "z", "answer": float("nan"), "id": "c"}], "row 3: the answer .* nan"),
        ([*ROWS, {"problem": "z", "answer": [["1"]], "id": "c"}], "row 3: the answer"),
        ([*ROWS, {"problem": "z", "answer": ["1", None], "id": "c"}], "row 3: the answer .* None"),
        ([*ROWS, {"problem": "z", "answer": "1", "id": 1.5}], r"row 3: the id .* 1\.5"),
        ([*ROWS, {"problem": "z", "answer": "1", "id": True}], "row 3: the id .* True"),
        (
            [*ROWS, {"problem": "z\ud83d", "answer": "1", "id": "c"}],
            "row 3: the question holds half",
        ),
        ([*ROWS, {"problem": "z", "answer": "\udc00", "id": "c"}], "row 3: the answer holds half"),
        ([*ROWS, {"problem": "z" * 1_000_001, "answer": "1", "id": "c"}], "row 3: .* 1,000,001 ch"),
    ],
)
@pytest.mark.parametrize("name", ["p.json", "p.jsonl"])
def test_surprising_rows_are_refused_by_number(tmp_path, rows, says, name):
    with pytest.raises(ValueError, match=says):
        load_problems(written(tmp_path, rows, name))


def test_unusable_problems_can_be_left_out(tmp_path):
    rows = [*ROWS, {"problem": "z", "answer": None, "id": "c"}, dict(ROWS[0])]
    path = written(tmp_path, rows)
    with pytest.warns(UserWarning, match="1 problems without an answer and 1 repeated ones; 2 are"):
        assert load_problems(path, drop_unusable=True)["problem_id"][:] == ["a", "b"]
    rows.append({"problem": "other", "answer": "1", "id": "a"})
    with pytest.raises(ValueError, match="row 5 has the same id as row 1"):
        load_problems(written(tmp_path, rows), drop_unusable=True)
    with pytest.raises(ValueError, match="no problem with an answer"):
        load_problems(written(tmp_path, [rows[2]]), drop_unusable=True)


def test_rows_are_told_by_their_lines_where_blank_lines_lie_between(tmp_path):
    path = tmp_path / "p.jsonl"
    lines = [json.dumps(ROWS[0]), "", json.dumps(ROWS[1]), "", '{"problem": "z", "id": "c"}']
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="row 5: the answer"):
        load_problems(path)


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
        ("p.csv", b"problem;answer\nx;1\n", "separated by commas, not by ';'"),
        ("p.csv", b"problem,answer,answer\nx,1,2\n", "several columns named answer"),
        ("p.csv", b'problem,answer\nw,0\nx,"1\ny,2\n', "row 2: .*closing quote"),
        ("p.csv", b"problem,answer\nx,1\n\xe9,2\n", "line 3: byte 0xe9 is no UTF-8"),
        ("p.csv", "problem,answer\nx,1\n".encode("utf-16"), "is no UTF-8"),
        ("p.json", b"[" * 200_000, "nested too deeply"),
        ("p.jsonl", b"\n" + b'{"a":' * 200_000, "line 2 on: brackets nested too deeply"),
        ("p.jsonl", b'{"problem": "x", "answer": ' + b"9" * 5000 + b"}", "line 1 on: .*a string"),
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


def test_a_long_field_of_a_table_is_refused_and_the_limit_of_others_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE", 100)
    before = csv.field_size_limit()
    path = tmp_path / "p.csv"
    path.write_text(f"problem,answer\nx,1\n{'y' * 1000},2\n")
    with pytest.raises(ValueError, match="row 2: field larger than field limit"):
        load_problems(path)
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.csv"])
def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path, name):
    path = written(tmp_path, ROWS[:1], name)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_problems(path)["answer"][:] == ["2"]


def test_a_field_with_commas_quotes_and_lines_is_one_field(tmp_path):
    path = tmp_path / "p.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["problem", "answer"], ['a,\n"b"', "(1, 2)"]])
    made = load_problems(path)
    assert (made["question"][:], made["answer"][:]) == (['a,\n"b"'], ["(1, 2)"])


def test_a_missing_file_and_wrong_column_roles_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        load_problems(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="is a folder"):
        load_problems(tmp_path)
    path = written(tmp_path, ROWS)
    for columns, says in [
        ({"gold": "answer"}, r"maps \['gold'\]; it can map prompt"),
        ({"prompt": "problem", "question": "problem"}, "one and the same"),
        ({"answer": "gold"}, r"none for the answer \(looked for gold\)"),
        ({"problem_id": "number"}, r"none for the problem_id \(looked for number\)"),
        ({"question": None}, "none for the question"),
    ]:
        with pytest.raises(ValueError, match=says):
            load_problems(path, columns=columns)


def test_unknown_benchmarks_list_what_exists():
    with pytest.raises(ValueError, match="aime24, amc22_23, math500, minerva, olympiad_bench"):
        load_benchmark("aime25")


def as_hub(monkeypatch, rows, name, asked=None):
    """`datasets.load_dataset` that knows these rows only, and a benchmark of their number."""

    def load_dataset(path, config, split, revision):
        if asked is not None:
            asked.update(path=path, config=config, split=split, revision=revision)
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    changed = dataclasses.replace(BENCHMARKS[name], count=len(rows))
    monkeypatch.setattr(benchmarks, "BENCHMARKS", {**BENCHMARKS, name: changed})


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_asks_the_hub_for_its_own_columns(monkeypatch, name):
    about = BENCHMARKS[name]
    gold = ["2"] if "olympiad" in name else 2.0 if "amc" in name else "2"
    row = {about.question: "1+1?", about.answer: gold, "solution": "not this"}
    if about.problem_id:
        row[about.problem_id] = 7
    asked = {}
    as_hub(monkeypatch, datasets.Dataset.from_list([row]), name, asked)
    made = load_benchmark(name, revision="abc")
    assert asked == {
        "path": about.path, "config": about.name, "split": about.split, "revision": "abc",
    }  # fmt: skip
    assert made[0]["answer"] == (["2"] if "olympiad" in name else "2")
    assert made.column_names == ["problem_id", "prompt", "question", "answer"]
    assert made[0]["prompt"][0]["content"] == (
        "1+1? Let's think step by step and output the final answer within \\boxed{}."
    )


def test_the_training_set_comes_without_its_unusable_problems(monkeypatch):
    golds = {"x": "1", "y": "", "z": "2"}
    rows = [{"problem": name, "answer": gold} for name, gold in golds.items()]
    as_hub(monkeypatch, datasets.Dataset.from_list([*rows, rows[0]]), "deepscaler")
    with pytest.warns(UserWarning, match="1 problems without an answer and 1 repeated"):
        assert load_benchmark("deepscaler")["question"][:] == ["x", "z"]
    test_set = datasets.Dataset.from_list([{**row, "unique_id": row["problem"]} for row in rows])
    as_hub(monkeypatch, test_set, "math500")
    with pytest.raises(ValueError, match="MATH-500 test, row 2: the answer"):
        load_benchmark("math500")


def test_another_number_of_problems_is_told(tmp_path):
    path = written(tmp_path, ROWS)
    with pytest.warns(UserWarning, match=r"aime24 has 30 problems, but .*p.jsonl has 2"):
        assert len(load_benchmark("aime24", path)) == 2
    with pytest.raises(ValueError, match="is a file and has none"):
        load_benchmark("aime24", path, revision="main")


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
    here = dataclasses.replace(BENCHMARKS["math500"], path=str(tmp_path), count=1)
    monkeypatch.setattr(benchmarks, "BENCHMARKS", {"math500": here})
    made = load_benchmark("math500")
    assert made["problem_id"][:] == ["u"]
    assert dataset_card(made).source == f"{tmp_path} test"


def test_the_card_holds_the_commit_that_the_rows_are_of(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    row = {"problem": "1+1?", "answer": "2", "id": 60}
    datasets.Dataset.from_list([row]).save_to_disk(tmp_path / "0.0.0" / commit)
    as_hub(monkeypatch, datasets.load_from_disk(tmp_path / "0.0.0" / commit), "aime24")
    card = dataset_card(load_benchmark("aime24"))
    assert (card.source, card.revision) == ("HuggingFaceH4/aime_2024 train", commit)
    assert card.sentence().startswith(f"HuggingFaceH4/aime_2024 train at {commit}: 1 problems, sha")
    as_hub(monkeypatch, datasets.Dataset.from_list([row]), "aime24")
    assert dataset_card(load_benchmark("aime24", revision="v1")).revision == "v1"
    assert dataset_card(load_benchmark("aime24")).revision == ""


def test_the_card_changes_with_the_rows(tmp_path):
    path = written(tmp_path, ROWS)
    made = load_problems(path)
    card = dataset_card(made)
    assert (card.source, card.revision, card.problems) == (str(path), "", 2)
    assert card == dataset_card(load_problems(path, question_suffix=" other"))
    assert card.sha256 != dataset_card(made.select([1, 0])).sha256
    part = dataset_card(made.shuffle(seed=0).select([0]))
    assert (part.source, part.problems) == (str(path), 1)
    assert f"{path}: 2 problems" in card.sentence()


BROKEN = {"problem": "z", "answer": "\\frac{1}{", "id": "broken"}


def test_golds_that_cannot_be_graded_are_reported_by_id(tmp_path):
    again = {**BROKEN, "id": "again", "problem": "w"}
    verifier = MathVerifier(workers=1)
    try:
        path = written(tmp_path, [*ROWS, BROKEN, again])
        report = check_golds(load_problems(path), verifier)
        assert list(report.unreadable) == ["broken", "again"]
        assert "2 of 4 golds" in report.sentence()
        whole = check_golds(load_problems(written(tmp_path, ROWS)), verifier)
        assert whole.sentence() == "All 2 golds can be graded."
        lists = [{"problem": "x", "answer": ["1,234", "\\left(1, \\tfrac{1}{2}\\right]"]}]
        for require_all in (False, True):
            verifier.require_all = require_all
            assert not check_golds(load_problems(written(tmp_path, lists)), verifier).unreadable
    finally:
        verifier.close()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("007", "'007' as it stands is graded 'wrong'"),
        ("7", "'007' without leading zeros is graded 'wrong'"),
        ("$007$", "'007' in dollars is graded 'wrong'"),
    ],
)
def test_a_variant_that_the_grader_takes_for_wrong_is_reported(tmp_path, wrong, says):
    class Strict(MathVerifier):
        """Takes one way to state an answer for a wrong one."""

        def grade_answers(self, answers, golds):
            grades = super().grade_answers(answers, golds)
            bad = Grade(0.0, wrong, "wrong")
            return [bad if a == wrong else g for a, g in zip(answers, grades, strict=True)]

    verifier = Strict(workers=1)
    try:
        path = written(tmp_path, [{"problem": "x", "answer": "007", "id": "bond"}, *ROWS])
        assert check_golds(load_problems(path), verifier).unreadable == {"bond": says}
    finally:
        verifier.close()


def test_loading_warns_of_golds_that_cannot_be_graded(tmp_path):
    path = written(tmp_path, [*ROWS, BROKEN])
    with pytest.warns(UserWarning, match=r"p\.jsonl: 1 of 3 golds cannot be graded \(broken: "):
        load_problems_checked(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_problems_checked(written(tmp_path, ROWS, "q.jsonl"))) == 2
        assert len(load_problems(path)) == 3


def test_tasks_by_name_or_file(tmp_path):
    path = written(tmp_path, ROWS)
    assert load_task(str(path), num_problems=1).problems["problem_id"][:] == ["a"]
    assert "generated (5 problems)" in load_task("countdown", "test", 5).card
    with pytest.raises(ValueError, match="Choose countdown, aime24"):
        load_task("nothing")
    with pytest.raises(ValueError, match="has 2; give 1 to 2"):
        load_task(str(path), num_problems=3)


@pytest.mark.skipif("ANYTIME_LAB_DATA" not in os.environ, reason="ANYTIME_LAB_DATA is not set")
@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("aime24", "aime.json", 30),
        ("amc22_23", "amc.json", 83),
        ("math500", "math.json", 500),
        ("deepscaler", "math_train.json", 7_470),
    ],
)
def test_real_problem_sets_load_and_all_their_golds_can_be_graded(name, file, count):
    path = Path(os.environ["ANYTIME_LAB_DATA"]) / file
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        made = load_benchmark_checked(name, path)
    assert len(made) == count and all(made["answer"][:])
    assert not [warning for warning in told if "cannot be graded" in str(warning.message)]
    assert len(told) == (2 if name == "deepscaler" else 0)  # another number; some left out
