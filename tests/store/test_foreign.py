"""Results of lm-evaluation-harness and of inspect, read into the same curves."""

import json
import sys

import pandas as pd
import pytest

from anytime_lab.look.curves_view import BudgetCurves
from anytime_lab.look.problem_view import InsideProblem
from anytime_lab.read.curves import accuracy_curve
from anytime_lab.read.runs import EXAMPLE, Tables, ThinkingStore, find_evaluations
from anytime_lab.store.files import RunFolderError
from anytime_lab.store.foreign import export_inspect, import_results
from anytime_lab.store.records import read_records

RIGHT = {256: (0, 1, 0), 1024: (1, 1, 0)}  # of three problems, by the strict filter


def lm_eval(path, rights):
    """As lm_eval --log_samples writes it: a row for each document and filter."""
    rows = [
        {
            "doc_id": number, "doc": {"question": f"{number} + 1?", "answer": str(number + 1)},
            "target": str(number + 1), "arguments": [[f"{number} + 1?", {"until": ["\n"]}]],
            "resps": [[f"It is {number + 1}."]], "filtered_resps": [str(number + 1)],
            "filter": kept, "metrics": ["exact_match"], "doc_hash": "a", "prompt_hash": "b",
            "target_hash": "c", "exact_match": float(right if kept == "strict-match" else 1),
        }
        for number, right in enumerate(rights)
        for kept in ("strict-match", "flexible-extract")
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def inspect(path, rights, scorers=("match",)):
    samples = [
        {
            "id": number, "epoch": epoch, "input": f"{number} + 1?", "target": str(number + 1),
            "output": {"choices": [{"message": {"role": "assistant", "content": "It is 1."}}]},
            "scores": {
                name: {"value": "C" if right else "I", "answer": "1"} for name in scorers
            },
        }
        for epoch in (1, 2)
        for number, right in enumerate(rights)
    ]  # fmt: skip
    path.write_text(json.dumps({"version": 2, "eval": {"task": "sums"}, "samples": samples}))
    return path


def test_samples_of_lm_eval_become_a_curve(tmp_path):
    files = {b: lm_eval(tmp_path / f"{b}.jsonl", rights) for b, rights in RIGHT.items()}
    folder = import_results(files, tmp_path / "run", "exact_match,strict-match")
    curve = accuracy_curve(read_records(folder))
    assert curve["budget"].tolist() == [256, 1024]
    assert curve["accuracy"].tolist() == pytest.approx([1 / 3, 2 / 3])
    (evaluation,), _ = find_evaluations(folder)
    tables = Tables()
    tables.read([evaluation])
    assert not tables.complaints
    thinkings = ThinkingStore(folder)
    thought = thinkings.thought("1", 0, thinkings.records("1"))
    assert (thought.question, thought.gold) == ("1 + 1?", "2")
    assert BudgetCurves({"other": folder}).figure().data
    assert InsideProblem({"other": folder}).sides[0].path["budget"].tolist() == [256, 1024]
    with pytest.raises(ValueError, match="'exact_match,flexible-extract', 'exact_match,strict"):
        import_results(files, tmp_path / "other")


def test_logs_of_inspect_become_a_curve_and_a_second_import_is_refused(tmp_path):
    files = {b: inspect(tmp_path / f"{b}.json", rights) for b, rights in RIGHT.items()}
    folder = import_results(files, tmp_path / "run")
    records = read_records(folder)
    assert accuracy_curve(records)["accuracy"].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert sorted(records["sample"].unique()) == [0, 1]  # epochs
    assert records["logprob"].isna().all() and records["answer"].eq("1").all()
    with pytest.raises(RunFolderError, match="give a new folder"):
        import_results(files, folder)


def test_what_does_not_fit_is_told(tmp_path):
    files = {256: inspect(tmp_path / "a.json", (1, 0)), 512: inspect(tmp_path / "b.json", (1,))}
    with pytest.raises(ValueError, match="2 problems at 256, 1 problems at 512"):
        import_results(files, tmp_path / "run")
    several = {256: inspect(tmp_path / "c.json", (1,), ("match", "model"))}
    with pytest.raises(ValueError, match=r"\['match', 'model'\]; choose one"):
        import_results(several, tmp_path / "run")
    (tmp_path / "d.json").write_text("{}")
    with pytest.raises(RunFolderError, match="no samples"):
        import_results({1: tmp_path / "d.json"}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("samples_a.jsonl", "", "holds nothing"),
        ("samples_a.jsonl", '{"a": 1}\n', "rows of another form"),
        ("log.json", '{"samples": [1]}', "rows of another form"),
        ("log.json", "[1]", "holds no samples"),
        ("absent.jsonl", None, "cannot be read"),
    ],
)
def test_a_file_of_something_else_is_told(tmp_path, name, text, told):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(RunFolderError, match=told):
        import_results({8: tmp_path / name}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_evaluation_becomes_logs_of_inspect_and_comes_back_by_them(tmp_path):
    pytest.importorskip("inspect_ai")
    for number, run in enumerate((EXAMPLE / "evaluate_grpo", tmp_path / "0/run")):
        out = tmp_path / str(number)
        back = import_results(export_inspect(run, out / "logs"), out / "run")
        keys = ["problem_id", "sample", "budget", "summary"]
        kept = ["score", "correct", "answer", "summary_text"]
        had, has = (read_records(one).astype({"problem_id": str}) for one in (run, back))
        had, has = (one.set_index(keys)[kept].sort_index() for one in (had, has))
        pd.testing.assert_frame_equal(had, has)


def test_without_inspect_its_logs_are_refused_with_the_fix(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    with pytest.raises(ImportError, match="pip install inspect-ai"):
        export_inspect(EXAMPLE / "evaluate_grpo", tmp_path / "logs")
    assert not list(tmp_path.iterdir())
