"""Problems from files: one form whatever the file, and errors that name the row."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anytime_lab.tasks.problems import QUESTION_SUFFIX, load_problems, load_task

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
        ([*ROWS, {"problem": "z", "answer": "1", "id": None}], r"row 3: the problem_id .* is None"),
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
        ([*ROWS, {"problem": "z", "answer": "1", "id": 1.5}], r"row 3: the problem_id .* 1\.5"),
        ([*ROWS, {"problem": "z", "answer": "1", "id": True}], "row 3: the problem_id .* True"),
        (
            [*ROWS, {"problem": "z\ud83d", "answer": "1", "id": "c"}],
            "row 3: the question .* holds half",
        ),
        (
            [*ROWS, {"problem": "z", "answer": "\udc00", "id": "c"}],
            "row 3: the answer .* holds half",
        ),
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
        ("p.csv", b"problem,answer\nx,1,2\n", "row 1 has 3 fields; expected 2"),
        ("p.csv", b"problem,answer\nx\n", "row 1 has 1 fields; expected 2"),
        ("p.parquet", b"no parquet", "cannot be read as parquet"),
        ("p.txt", b"x", "expected one of"),
        ("p.csv", b"problem;answer\nx;1\n", "columns .'problem;answer'., but none"),
        ("p.csv", b"problem,answer,answer\nx,1,2\n", "several columns named answer"),
        ("p.csv", b'problem,answer\nw,0\nx,"1\ny,2\n', "row 2: .*closing quote"),
        ("p.csv", b"problem,answer\nx,1\n\xe9,2\n", "line 3: byte 0xe9 is no UTF-8"),
        ("p.csv", "problem,answer\nx,1\n".encode("utf-16"), "is no UTF-8"),
        ("p.json", b"[" * 200_000, "nested too deeply"),
        ("p.jsonl", b"\n" + b'{"a":' * 200_000, "line 2: brackets nested too deeply"),
        ("p.jsonl", b'{"problem": "x", "answer": ' + b"9" * 5000 + b"}", "line 1: .*a string"),
    ],
)
def test_broken_files_are_refused_with_the_place(tmp_path, name, data, says):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=says):
        load_problems(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"a": 1},\n {"a": 2}\n {"a": 3}]', r"line 3, column 2: Expecting ','"),
        ('[{"a": 1},\n {"a" 2}]', r"line 2, column 7: Expecting ':'"),
        ('[{"a": 1}', r": Expecting ','"),
        ('[{"a": "1', r"line 1, column 8: Unterminated string"),
        ('[{"a": 1}]\n[]', "line 2, column 1: Extra data"),
        ('{"a": [1], 5}', "Expecting property name"),
        ("", "Expecting value"),
        (f'[{{"a": 1}},\n {{"a": b}}, {" " * 300_000}', r"line 2, column 8"),
    ],
)
def test_a_torn_json_file_is_refused_with_line_column_and_row(tmp_path, text, says):
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        load_problems(path)


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
    with pytest.raises(FileNotFoundError, match="none.jsonl is not there"):
        load_problems(tmp_path / "none.jsonl")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load_problems(tmp_path)
    with pytest.raises(TypeError, match="not .?NoneType"):
        load_problems(None)
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


def test_a_table_with_broken_text_is_refused_by_row(tmp_path):
    broken = pa.StringArray.from_buffers(3, *pa.array([b"x", b"y", b"\xff"]).buffers()[1:])
    pq.write_table(pa.table({"problem": broken, "answer": ["1", "2", "3"]}), tmp_path / "p.parquet")
    with pytest.raises(ValueError, match="row 3: text that is no UTF-8"):
        load_problems(tmp_path / "p.parquet")


# --- splits --------------------------------------------------------------------------------------

SPLITS = {
    "train": [{"problem": "a?", "answer": "1"}],
    "test": [{"problem": "b?", "answer": "2"}, {"problem": "c?", "answer": "3"}],
}


@pytest.mark.parametrize("data", [SPLITS, {"data": SPLITS, "version": [1, 2, 3, 4]}])
def test_a_json_file_of_several_lists_gives_the_one_asked_for(tmp_path, data):
    path = written(tmp_path, data, "p.json")
    assert load_problems(path, split="train")["question"][:] == ["a?"]
    assert load_problems(path, split="test")["question"][:] == ["b?", "c?"]
    for split, says in [(None, r"Name one of them \(split"), ("dev", "none is called 'dev'")]:
        with pytest.raises(ValueError, match=rf"train \(1 rows\).*test \(2 rows\).*{says}"):
            load_problems(path, split=split)
    assert load_task(str(path), split="train", check=False).problems["question"][:] == ["a?"]


def test_a_single_list_of_another_split_is_told(tmp_path):
    path = written(tmp_path, {"train": SPLITS["train"]}, "p.json")
    with pytest.warns(UserWarning, match=r"train \(1 rows\) only; that is taken for 'test'"):
        assert load_problems(path, split="test")["question"][:] == ["a?"]


@pytest.mark.parametrize("name", ["p.jsonl", "p.parquet", "p.csv", "p.json"])
def test_a_column_that_says_the_split_is_heeded_and_told(tmp_path, name):
    rows = [{**row, "split": split} for split, its in SPLITS.items() for row in its]
    path = written(tmp_path, rows, name)
    with pytest.warns(UserWarning, match="the 2 of 3 rows whose column 'split' says 'test'"):
        assert load_problems(path, split="test")["question"][:] == ["b?", "c?"]
    assert len(load_problems(path)) == len(load_problems(path, split="dev")) == 3


def test_a_file_in_the_home_folder_is_found_by_its_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path, ROWS)
    assert len(load_task("~/p.jsonl", check=False).problems) == len(load_problems("~/p.jsonl")) == 2


# --- conversations and nested golds --------------------------------------------------------------

SYSTEM = {"role": "system", "content": "Be brief."}


def verl(question, gold, *before):
    return {
        "data_source": "mine",
        "prompt": [*before, {"role": "user", "content": question}],
        "reward_model": {"style": "rule", "ground_truth": gold},
        "extra_info": {"split": "train", "index": 0},
    }


@pytest.mark.parametrize("name", ["p.parquet", "p.jsonl", "p.json"])
@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"answer": "reward_model.ground_truth"},
        {"prompt": "prompt", "answer": "reward_model"},
        {"problem_id": "reward_model.style", "answer": "reward_model.ground_truth"},
    ],
)
def test_rows_of_conversations_with_nested_golds_load(tmp_path, name, columns):
    path = written(tmp_path, [verl("1+1?", "2", SYSTEM)], name)
    (row,) = load_problems(path, columns=columns)
    assert row["prompt"] == [SYSTEM, {"role": "user", "content": "1+1?" + QUESTION_SUFFIX}]
    assert (row["question"], row["answer"]) == ("1+1?", "2")


def test_conversations_and_objects_written_as_text_load(tmp_path):
    row = verl("1+1?", "2", SYSTEM)
    path = tmp_path / "p.csv"
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["prompt", "reward_model"])
        table.writerow([json.dumps(row["prompt"]), json.dumps(row["reward_model"])])
        table.writerow([str(verl("2+2?", "4")["prompt"]), json.dumps({"ground_truth": "4"})])
    made = load_problems(path)
    assert made["question"][:] == ["1+1?", "2+2?"] and made["answer"][:] == ["2", "4"]
    assert made["prompt"][0][0] == SYSTEM


@pytest.mark.parametrize(
    "turns",
    [
        [],
        [SYSTEM],
        [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}],
        [{"role": "user", "content": " "}],
        [{"role": "user", "content": None}],
        [{"from": "human", "value": "1+1?"}],
        [{"role": 3, "content": "Sum"}, {"role": "user", "content": "1+1?"}],
        [{"role": "user", "content": [{"type": "image"}]}],
        ["1+1?"],
    ],
)
def test_a_conversation_that_asks_nothing_is_refused_by_row(tmp_path, turns):
    rows = [verl("1+1?", "2"), {**verl("", "2"), "prompt": turns}]
    with pytest.raises(ValueError, match="row 2: the question .*last turn is the user's"):
        load_problems(written(tmp_path, rows))


def test_text_in_parts_is_one_text(tmp_path):
    parts = [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]
    row = {"messages": [{"role": "user", "content": parts}], "ground_truth": 2}
    assert load_problems(written(tmp_path, [row]))[0]["question"] == "1+1?"


def test_dotted_names_that_lead_nowhere_are_refused(tmp_path):
    path = written(tmp_path, [verl("1+1?", "2")])
    for name in ("reward_model.gold", "prompt.gold", "nothing.gold"):
        with pytest.raises(ValueError, match=rf"none for the answer \(looked for {name}\)"):
            load_problems(path, columns={"answer": name})


# --- worked solutions as golds -------------------------------------------------------------------


def test_a_worked_solution_gives_its_last_answer_and_is_told_once(tmp_path):
    golds = [
        "We add 3+4=7.\n#### 7",
        "First #### is 3.\n#### 1,234",
        "So we have to take \\boxed{\\frac{1}{2}} of it.",
        "x = \\boxed{5}",
        "Either \\boxed{1} or \\boxed{2} of them will do.",
    ]
    rows = [{"problem": f"{n}?", "answer": gold} for n, gold in enumerate(golds)]
    with pytest.warns(UserWarning, match="3 of 5 answers are worked solutions.*row 1 '7'; row 2"):
        made = load_problems(written(tmp_path, rows))
    assert made["answer"][:] == ["7", "1,234", "\\frac{1}{2}", *golds[3:]]


# --- golds that are none -------------------------------------------------------------------------

DISGUISED = ["NaN", "None", "null", "N/A", "n/a", "proof", "Proof.", "(see solution)", "-", "?",
             "$\\boxed{}$", "\\boxed{\\text{None}}", "['2', 'two']", '["2"]', "nan ",
             "[]"]  # fmt: skip


@pytest.mark.parametrize("gold", DISGUISED)
@pytest.mark.parametrize("name", ["p.csv", "p.jsonl"])
def test_golds_that_are_none_in_disguise_are_told_by_row(tmp_path, gold, name):
    path, rows = tmp_path / name, [["a?", "3"], ["b?", gold]]
    if name == "p.csv":
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([["problem", "answer"], *rows])
    else:
        written(tmp_path, [{"problem": q, "answer": a} for q, a in rows])
    with pytest.warns(UserWarning, match="1 of 2 answers look like none: row 2 .*drop_unusable"):
        assert len(load_problems(path)) == 2
    with pytest.warns(UserWarning, match="left out 1 problems without an answer"):
        assert load_problems(path, drop_unusable=True)["answer"][:] == ["3"]


def test_golds_that_only_look_odd_are_taken_without_a_word(tmp_path, recwarn):
    golds = ["0", "-1", "[2, 3]", "(1, 2)", "\\text{no solution}", "\\{\\}", "\\emptyset", "na + 1",
             "\\text{unknown variable}", "nano", "x = None + 1", "[a, b]", "NO"]  # fmt: skip
    rows = [{"problem": f"{n}?", "answer": gold} for n, gold in enumerate(golds)]
    assert load_problems(written(tmp_path, rows))["answer"][:] == golds
    assert not recwarn.list
