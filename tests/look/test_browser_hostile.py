"""Every view on hostile text and on folders that are none, in JupyterLab."""

from pathlib import Path

import numpy as np
import pytest
from made_runs import random_right, write_run, write_tree

from anytime_lab.store.files import METRICS, append_jsonl
from anytime_lab.store.records import part_path

pytestmark = pytest.mark.slow

ACT = "document.title = window.owned = 'owned'"
HOSTILE = (
    f'<img src=x onerror="{ACT}"></script><script>{ACT}</script><svg/onload="{ACT}">'
    f'<a href="javascript:{ACT}">%{{x}}</a> $$\\href{{javascript:{ACT}}}{{x}}$$ \\(x\\) '
    "\x1b[31mred\x1b[0m \u202eright to left\u202c "
)
LONG = HOSTILE + "x" * 1_000_000
BEGIN = """
import sys
sys.path.insert(0, {tests!r})
from made_thoughts import Scripted, Thinks, answer
from anytime_lab.verify.verifiers import ExactVerifier
from anytime_lab.look.answer_view import AnswerNow
from anytime_lab.look.curves_view import BudgetCurves
from anytime_lab.look.credit_view import Credit
from anytime_lab.look.policies_view import Policies
from anytime_lab.look.problem_view import InsideProblem
from anytime_lab.look.training_view import Training
hostile, runs, trained = {hostile!r}, {runs!r}, {trained!r}
"""
ANSWER = """
spoken = [hostile, "x" * 1_000_000, hostile]
model = Thinks(lambda: Scripted(spoken, lambda _length, count: [answer(hostile, 0.5)] * count))
answers = AnswerNow(model, [{"prompt": hostile, "answer": hostile}], ExactVerifier(), rate=0)
answers
"""
VIEWS = ("BudgetCurves", "InsideProblem", "Policies", "Credit", "Training")


def view(name, folders):
    """A cell that shows a view, and its picture."""
    return f"{name}({folders})"


def test_text_of_models_problems_and_folders_cannot_act(lab, tmp_path):
    right = random_right(p=3, s=1)
    answers = np.full(right.shape, HOSTILE, dtype=object)
    texts = {"thinking": LONG, "question": LONG, "summary_text": LONG, "answers": answers}
    names = [f"{HOSTILE}{i}" for i in range(3)]
    runs = {}
    for i in range(2):
        runs[f"{HOSTILE}{i}"] = str(tmp_path / f"run{i}")
        data = right if i else 1 - right
        write_run(tmp_path / f"run{i}", data, dataset=HOSTILE, problems=names, **texts)
    write_tree(tmp_path / "trained", 5, text=HOSTILE * 2)
    line = {"step": 1, "anytime_accuracy": 0.5, "final_accuracy": 0.5, "score/24": 0.5, HOSTILE: 1}
    append_jsonl(tmp_path / "trained" / METRICS, line)
    trained = {HOSTILE: str(tmp_path / "trained")}
    begin = BEGIN.format(
        tests=str(Path(__file__).parents[1]), hostile=HOSTILE, runs=runs, trained=trained
    )
    cells = [begin]
    for name in VIEWS:
        cells.append(view(name, "trained" if name in ("Credit", "Training") else "runs"))
    with lab.cells(*cells, ANSWER) as page:
        page.run_all(200)
        for place in range(page.raw.locator(".anytime-lab-figure").count()):
            page.live(place).data()
        page.raw.get_by_role("button", name="Start", exact=True).click()
        page.wait(lambda: page.raw.get_by_role("button", name="Start again").count(), 60)
        page.line(0).press("ArrowRight")
        page.button("Problems behind the line").click()
        page.wait(lambda: page.raw.locator(".anytime-lab .model").count() > 6, 60)
        page.raw.wait_for_timeout(500)
        shown = page.text()
        assert shown.count("<img src=x onerror=") > 10 and "</script>" in shown
        assert "\x1b" not in shown and "\u202e" not in shown
        for bad in (
            "img[src=x]",
            "svg[onload]",
            "a[href^=javascript]",
            ".MathJax",
            "mjx-container",
        ):
            assert page.raw.locator(f".jp-OutputArea-output {bad}").count() == 0, bad
        assert page.raw.evaluate("window.owned") is None and "owned" not in page.raw.title()


def test_folders_without_results_are_sentences(lab, tmp_path):
    folders = {name: tmp_path / name for name in ("empty", "foreign", "torn", "partial")}
    folders["empty"].mkdir()
    folders["foreign"].mkdir()
    (folders["foreign"] / "manifest.json").write_text('{"made by": "another tool"}')
    (folders["foreign"] / METRICS).write_bytes(b"\xff\xfe\n{]\n")
    for name in ("torn", "partial"):
        write_run(folders[name], random_right(p=3), parts=2, written=1)
    part_path(folders["torn"], "records", 0).write_bytes(b"no")
    part_path(folders["torn"], "thinkings", 0).write_bytes(b"no")
    runs = {name: str(path) for name, path in folders.items()} | {"none": str(tmp_path / "none")}
    begin = BEGIN.format(tests=str(Path(__file__).parents[1]), hostile="", runs=runs, trained={})
    cells = [view(name, "runs") for name in VIEWS]
    with lab.cells(begin, *cells) as page:
        page.run_all(200)
        for place in range(page.raw.locator(".anytime-lab-figure").count()):
            page.live(place).data()
        said = page.text()
        assert "Traceback" not in said and "partial is still being written" in said
        for words in ("is not a folder", "damaged", "kept no rollouts", "no step yet"):
            assert words in said, words
