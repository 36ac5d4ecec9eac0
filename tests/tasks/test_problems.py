"""Benchmarks by name: from the hub or a file, with a card and a check of their golds."""

import dataclasses
import errno
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import datasets
import httpx
import pytest
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import LocalEntryNotFoundError

from anytime_lab.tasks import problems as benchmarks
from anytime_lab.tasks.problems import (
    BENCHMARKS,
    card_of,
    load_problems,
    load_task,
)
from anytime_lab.verify.verifiers import Grade, MathVerifier

ROWS = [
    {"problem": "1+1?", "answer": "2", "id": "a"},
    {"problem": " 1/2+1? ", "answer": "3/2 ", "id": "b"},
]


def written(folder, rows, name="p.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_unknown_benchmarks_list_what_exists():
    with pytest.raises(ValueError, match="aime24, amc22_23, math500, minerva, olympiad_bench"):
        load_task("aime25")


def test_a_path_that_is_no_file_says_what_lies_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"no file {re.escape(str(tmp_path / 'sums.jsonl'))}"):
        load_task("sums.jsonl")
    with pytest.raises(ValueError, match="but a folder; one of datasets.load_from_disk"):
        load_task(str(tmp_path))


def as_hub(monkeypatch, rows, name, asked=None):
    """`datasets.load_dataset` that knows these rows only, and a benchmark of their number."""

    def load_dataset(path, config, split, revision):
        if asked is not None:
            asked.update(path=path, config=config, split=split, revision=revision)
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    changed = dataclasses.replace(BENCHMARKS[name], count=len(rows))
    monkeypatch.setattr(benchmarks, "BENCHMARKS", {**BENCHMARKS, name: changed})


# Of the question, the answer and the id on the hub.
COLUMNS = {
    "aime24": ("problem", "answer", "id"),
    "amc22_23": ("problem", "answer", "id"),
    "math500": ("problem", "answer", "unique_id"),
    "minerva": ("question", "answer"),
    "olympiad_bench": ("question", "final_answer", "id"),
    "deepscaler": ("problem", "answer"),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_asks_the_hub_for_its_own_columns(monkeypatch, name):
    about = BENCHMARKS[name]
    gold = ["2"] if "olympiad" in name else 2.0 if "amc" in name else "2"
    question, answer, *others = COLUMNS[name]
    row = {question: "1+1?", answer: gold, "solution": "not this", **dict.fromkeys(others, 7)}
    asked = {}
    as_hub(monkeypatch, datasets.Dataset.from_list([row]), name, asked)
    made = load_problems(name, revision="abc")
    assert asked == {
        "path": about.path, "config": about.name, "split": about.split, "revision": "abc",
    }  # fmt: skip
    assert made[0]["answer"] == (["2"] if "olympiad" in name else "2")
    assert (made[0]["problem_id"] == "7") == bool(others)
    assert made.column_names == ["problem_id", "prompt", "question", "answer"]
    assert made[0]["prompt"][0]["content"] == (
        "1+1? Let's think step by step and output the final answer within \\boxed{}."
    )


def test_the_training_set_comes_without_its_unusable_problems(monkeypatch):
    golds = {"x": "1", "y": "", "z": "2"}
    rows = [{"problem": name, "answer": gold} for name, gold in golds.items()]
    as_hub(monkeypatch, datasets.Dataset.from_list([*rows, rows[0]]), "deepscaler")
    with pytest.warns(UserWarning, match="1 problems without an answer and 1 repeated"):
        assert load_problems("deepscaler")["question"][:] == ["x", "z"]
    test_set = datasets.Dataset.from_list([{**row, "unique_id": row["problem"]} for row in rows])
    as_hub(monkeypatch, test_set, "math500")
    with pytest.raises(ValueError, match="MATH-500 test, row 2: the answer"):
        load_problems("math500")


def test_another_number_of_problems_is_told(tmp_path):
    path = written(tmp_path, ROWS)
    with pytest.warns(UserWarning, match=r"aime24 has 30 problems, but .*p.jsonl has 2"):
        assert len(load_problems("aime24", path)) == 2
    with pytest.raises(ValueError, match="is a file and has none"):
        load_problems("aime24", path, revision="main")


def offline_error():
    """What `datasets` raises without a network."""
    cause = LocalEntryNotFoundError("no snapshot")
    cause.__cause__ = httpx.ConnectError("name or service not known")
    error = ConnectionError("Couldn't reach 'x' on the Hub (LocalEntryNotFoundError)")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("raised", "kind", "says"),
    [
        (offline_error(), ConnectionError, "Check the connection"),
        (httpx.ReadTimeout("timed out"), ConnectionError, "Check the connection"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), ConnectionError, "Check the connection"),
        (ValueError("BuilderConfig 'a' not found."), ValueError, "'a' not found. .*revision=..."),
        (DatasetNotFoundError("Dataset 'x' doesn't exist"), ValueError, "moved.*or is private"),
        (DatasetNotFoundError("Revision 'v' doesn't exist"), ValueError, "Revision 'v' .*another"),
        (DatasetNotFoundError("'x' is a gated dataset"), PermissionError, "Agree to its terms"),
    ],
)
def test_what_the_hub_refuses_is_told_apart_and_says_how_to_pass_a_file(
    monkeypatch, raised, kind, says
):
    def load_dataset(*_, **__):
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(kind, match=says) as caught:
        load_problems("aime24", revision="v")
    assert "aime24 (https://huggingface.co/datasets/HuggingFaceH4/aime_2024)" in str(caught.value)
    assert 'load_task("aime24", path="aime24.jsonl")' in str(caught.value)


def test_a_full_disk_or_a_bug_is_not_taken_for_the_hub(monkeypatch):
    for raised in (OSError(errno.ENOSPC, "No space left on device"), KeyError("x")):

        def load_dataset(*_, raised=raised, **__):
            raise raised

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        with pytest.raises(type(raised)) as caught:
            load_problems("aime24")
        assert caught.value is raised
        assert "aime_2024" in raised.__notes__[0]


def test_without_a_network_and_a_cache_it_says_so_and_how_to_pass_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    for name in BENCHMARKS:
        with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE forbids") as caught:
            load_problems(name)
        assert str(tmp_path) in str(caught.value)
        assert f'load_task("{name}", path="{name}.jsonl")' in str(caught.value)


def test_a_changed_repository_is_seen(monkeypatch):
    changed = datasets.Dataset.from_list([{"text": "x"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: changed)
    with pytest.raises(ValueError, match="has the columns .'text'., but none for the question"):
        load_problems("math500")


def test_a_folder_on_disk_serves_as_the_hub_does(tmp_path, monkeypatch):
    written(tmp_path, [{"problem": "1+1?", "answer": "2", "unique_id": "u"}], "test.jsonl")
    here = dataclasses.replace(BENCHMARKS["math500"], path=str(tmp_path), count=1)
    monkeypatch.setattr(benchmarks, "BENCHMARKS", {"math500": here})
    made = load_problems("math500")
    assert made["problem_id"][:] == ["u"]
    assert card_of(made).startswith(f"{tmp_path} test: 1 problems")


def test_the_card_holds_the_commit_that_the_rows_are_of(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    row = {"problem": "1+1?", "answer": "2", "id": 60}
    datasets.Dataset.from_list([row]).save_to_disk(tmp_path / "0.0.0" / commit)
    as_hub(monkeypatch, datasets.load_from_disk(tmp_path / "0.0.0" / commit), "aime24")
    card = card_of(load_problems("aime24"))
    assert card.startswith(f"HuggingFaceH4/aime_2024 train at {commit}: 1 problems, sha")
    as_hub(monkeypatch, datasets.Dataset.from_list([row]), "aime24")
    assert " at v1: " in card_of(load_problems("aime24", revision="v1"))
    assert " at " not in card_of(load_problems("aime24"))


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as one repository of two files takes."""

    commit = "0123456789abcdef0123456789abcdef01234567"
    files = {
        "README.md": b"---\nlicense: mit\n---\n",
        "train.jsonl": b'{"id": 60, "problem": "1+1?", "answer": "2"}\n',
    }

    def log_message(self, *_):
        """Silence."""

    refused = {"hidden": (401, "RepoNotFound"), "gated": (403, "GatedRepo")}

    def do_GET(self):
        path = self.path.partition("?")[0]
        for name, (status, code) in self.refused.items():
            if f"/someone/{name}" in path:
                return self.reply(b"", status, **{"X-Error-Code": code})
        if "/no_such_revision" in path:
            return self.reply(b"", 404, **{"X-Error-Code": "RevisionNotFound"})
        repository = "/datasets/HuggingFaceH4/aime_2024"
        if path.startswith(f"{repository}/resolve/"):
            data = self.files.get(path.removeprefix(f"{repository}/resolve/").partition("/")[2])
            return self.reply(data, ETag=f'"{hashlib.sha1(data or b"").hexdigest()}"')
        if path.startswith(f"/api{repository}/tree/"):
            folder = path.removeprefix(f"/api{repository}/tree/").partition("/")[2]
            names = [name for name in self.files if str(Path(name).parent) == (folder or ".")]
            listed = [
                {"type": "file", "path": name, "size": len(self.files[name]), "oid": "0" * 40}
                for name in names
            ]
        else:
            listed = {"id": "HuggingFaceH4/aime_2024", "sha": self.commit, "siblings": []}
        self.reply(json.dumps(listed).encode(), **{"Content-Type": "application/json"})

    do_HEAD = do_GET

    def reply(self, data, status=None, **headers):
        self.send_response(status or (404 if data is None else 200))
        headers = {"X-Error-Code": "EntryNotFound" if data is None else ""} | headers
        headers |= {"X-Repo-Commit": self.commit, "Content-Length": str(len(data or b""))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data or b"")


ASKING = """
import dataclasses, os
from anytime_lab.tasks import problems as benchmarks
from anytime_lab.tasks.problems import card_of, load_problems

print(card_of(load_problems('aime24')))
here = benchmarks.BENCHMARKS["aime24"]
wrong = "no_such_revision" if os.environ["HF_HUB_OFFLINE"] == "0" else "f" * 40
for change in (
    {}, {"path": "someone/hidden"}, {"path": "someone/gated"}, {"split": "test"}, {"name": "hard"}
):
    benchmarks.BENCHMARKS = {"aime24": dataclasses.replace(here, **change)}
    try:
        load_problems("aime24", revision=None if change else wrong)
    except Exception as error:
        print(type(error).__name__, str(error).replace("\\n", " "))
"""


@pytest.mark.slow
def test_a_benchmark_comes_from_a_hub_and_then_from_its_cache(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    environ = {
        **os.environ, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1",
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "no_proxy": "127.0.0.1",
    }  # fmt: skip
    said = {}
    try:
        for offline in "01":
            run = subprocess.run(
                [sys.executable, "-c", ASKING], env={**environ, "HF_HUB_OFFLINE": offline},
                capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            assert f"aime_2024 train at {Hub.commit}: 1 problems" in run.stdout, run.stderr
            said[offline] = run.stdout.splitlines()[1:]
    finally:
        server.shutdown()
        server.server_close()
        serving.join()
    expected = {
        "0": [
            "ValueError .*aime_2024.*'no_such_revision'",
            "ValueError .*someone/hidden.*moved, deleted or changed, or is private",
            "PermissionError .*someone/gated.* gated .*Agree",
            "ValueError .*Unknown split .test..*moved, deleted or changed",
            "ValueError .*BuilderConfig .hard. not found",
        ],
        "1": [
            f"ValueError .*the cache holds {Hub.commit} and not 'ffff",
            "ConnectionError .*someone/hidden.* is not in the cache",
            "ConnectionError .*someone/gated.* is not in the cache",
            "ValueError .*Unknown split .test..*moved, deleted or changed",
            "ConnectionError .* is not in the cache",
        ],
    }
    for offline, patterns in expected.items():
        for line, wanted in zip(said[offline], patterns, strict=True):
            assert re.match(wanted, line), (offline, line)


def test_the_card_changes_with_the_rows(tmp_path):
    path = written(tmp_path, ROWS)
    made = load_problems(path)
    card = card_of(made)
    assert card.startswith(f"{path}: 2 problems, sha256 ")
    assert card == card_of(load_problems(path, question_suffix=" other"))
    assert card != card_of(made.select([1, 0]))
    assert card_of(made.shuffle(seed=0).select([0])).startswith(f"{path}: 1 problems")


BROKEN = {"problem": "z", "answer": "\\frac{1}{", "id": "broken"}


def unreadable(dataset, verifier):
    """Ids to why their golds cannot be graded."""
    whys = verifier.read_golds(dataset["answer"][:])
    return {id: why for id, why in zip(dataset["problem_id"][:], whys, strict=True) if why}


def test_golds_that_cannot_be_graded_are_reported_by_id(tmp_path):
    again = {**BROKEN, "id": "again", "problem": "w"}
    verifier = MathVerifier(workers=1)
    try:
        path = written(tmp_path, [*ROWS, BROKEN, again])
        assert list(unreadable(load_problems(path), verifier)) == ["broken", "again"]
        assert not unreadable(load_problems(written(tmp_path, ROWS)), verifier)
        lists = [{"problem": "x", "answer": ["1,234", "\\left(1, \\tfrac{1}{2}\\right]"]}]
        for require_all in (False, True):
            verifier.require_all = require_all
            assert not unreadable(load_problems(written(tmp_path, lists)), verifier)
    finally:
        verifier.close()


def test_a_gold_that_the_grader_takes_for_wrong_is_reported(tmp_path):
    class Strict(MathVerifier):
        """Takes an answer with zeros in front for a wrong one."""

        def grade_answers(self, answers, golds):
            grades = super().grade_answers(answers, golds)
            bad = Grade(0.0, "007", "wrong")
            return [bad if a == "007" else g for a, g in zip(answers, grades, strict=True)]

    verifier = Strict(workers=1)
    try:
        path = written(tmp_path, [{"problem": "x", "answer": "007", "id": "bond"}, *ROWS])
        says = {"bond": "'007' as it stands is graded 'wrong'"}
        assert unreadable(load_problems(path), verifier) == says
    finally:
        verifier.close()


def test_sentences_without_an_answer_are_reported_and_those_that_are_answers_are_not(tmp_path):
    golds = ["Natalia sold 48/2 = 24 clips in May.", "(B) the sum of two even numbers", "any odd n"]
    rows = [{"problem": f"{n}?", "answer": gold, "id": str(n)} for n, gold in enumerate(golds)]
    verifier = MathVerifier(workers=1)
    try:
        bad = unreadable(load_problems(written(tmp_path, rows)), verifier)
    finally:
        verifier.close()
    assert bad == {"0": "a sentence in which no answer is found"}


def test_loading_warns_of_golds_that_cannot_be_graded(tmp_path):
    path = written(tmp_path, [*ROWS, BROKEN])
    with pytest.warns(UserWarning, match=r"1 of 3 golds cannot be graded \(broken: .*or leave out"):
        load_task(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_task(written(tmp_path, ROWS, "q.jsonl")).problems) == 2
        assert len(load_problems(path)) == 3


def test_tasks_by_name_or_file(tmp_path):
    path = written(tmp_path, ROWS)
    assert load_task(str(path), num_problems=1).problems["problem_id"][:] == ["a"]
    task = load_task("countdown", "test", 5)
    assert task.card == card_of(task.problems)
    assert re.fullmatch(
        r"Countdown, test split, generated \(.*\): 5 problems, sha256 \w+", task.card
    )
    assert load_task(str(path)).card == card_of(load_problems(path))
    with pytest.raises(ValueError, match="Choose countdown, aime24"):
        load_task("nothing")
    for name in (3, None, ["math500"]):
        with pytest.raises(TypeError, match="the task is .*Choose countdown, aime24"):
            load_task(name)
    with pytest.raises(ValueError, match="has 2; give 1 to 2"):
        load_task(str(path), num_problems=3)


def test_a_task_asks_for_any_answer_or_for_all(tmp_path):
    path = written(tmp_path, [{"id": "a", "problem": "x^2 = 4?", "answer": ["2", "-2"]}])
    scores = []
    for require_all in (False, True):
        task = load_task(str(path), require_all=require_all)
        golds = task.problems["answer"][:] * 3
        scores += [g.score for g in task.verifier.grade_answers(["2", "-2, 2", "3, 2"], golds)]
        task.verifier.close()
    assert scores == [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="a problem of countdown has one"):
        load_task("countdown", require_all=True)


def test_golds_are_checked_as_they_will_be_graded(tmp_path):
    path = written(tmp_path, [*ROWS, BROKEN])
    with pytest.warns(UserWarning, match="1 of 3 golds cannot be graded"):
        load_task(str(path), require_all=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_task(str(path), require_all=True, check=False)


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
        made = load_task(name, path=path).problems
    assert len(made) == count and all(made["answer"][:])
    assert not [warning for warning in told if "cannot be graded" in str(warning.message)]
    assert len(told) == (2 if name == "deepscaler" else 0)  # another number; some left out
