"""Golds of real problem sets against themselves. Reads the folder named by ANYTIME_LAB_DATA."""

import json
import os
import re
from pathlib import Path

import pytest

from anytime_lab.verify.forms import read_form

FOLDER = os.environ.get("ANYTIME_LAB_DATA")
SETS = {"aime": 30, "amc": 83, "math": 500}  # and how many problems each has at least

pytestmark = pytest.mark.skipif(
    not FOLDER, reason="ANYTIME_LAB_DATA does not name a folder of problem sets"
)


def golds_of(name):
    path = Path(FOLDER) / f"{name}.json"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    golds = [row["answer"] for row in json.loads(path.read_text(encoding="utf-8"))]
    return [gold for gold in golds if gold not in (None, "")]  # MATH has four without an answer


def variants(gold):
    """Obvious ways in which a model states a gold."""
    text = str(int(gold)) if isinstance(gold, float) and gold.is_integer() else str(gold).strip()
    spaced = text.replace(",", ", ").replace("  ", " ")
    return {
        "itself": text,
        "in dollars": f"${text}$",
        "large fractions": text.replace(r"\frac", r"\dfrac"),
        "no \\left": text.replace(r"\left", "").replace(r"\right", ""),
        "full stop": text + ".",
        "newline": text + "\n",
        # "10, 080" is two numbers; a space after a comma is a variant only outside of numbers.
        "spaces": spaced if "," in text and not any(c.isdigit() for c in text) else f" {text} ",
    }


def failures(verifier, golds, answers):
    texts = [f"t</think>\n\n**Final Answer**\n\\boxed{{{answer}}}" for answer in answers]
    grades = verifier.grade(texts, golds)
    return [(g, grade) for g, grade in zip(golds, grades, strict=True) if grade.score != 1.0]


@pytest.mark.parametrize("name", SETS)
def test_every_gold_of_the_test_sets_equals_itself_and_its_variants(verifier, name):
    golds = golds_of(name)
    assert len(golds) >= SETS[name]
    assert [problem for problem in verifier.read_golds(golds) if problem] == []
    for variant in variants(golds[0]):
        answers = [variants(gold)[variant] for gold in golds]
        assert failures(verifier, golds, answers) == [], variant


def test_every_gold_of_the_training_set_equals_itself_and_its_variants(verifier):
    golds = golds_of("math_train")
    assert len(golds) >= 7_000
    assert [problem for problem in verifier.read_golds(golds) if problem] == []
    for variant in variants(golds[0]):
        answers = [variants(gold)[variant] for gold in golds]
        assert failures(verifier, golds, answers) == [], variant


def test_the_gold_of_another_problem_is_seldom_right(verifier):
    golds = golds_of("math")
    moved = golds[1:] + golds[:1]
    answers = [variants(gold)["itself"] for gold in moved]
    right = len(golds) - len(failures(verifier, golds, answers))
    assert right <= sum(str(a) == str(b) for a, b in zip(golds, moved, strict=True)) + 2


@pytest.mark.slow
@pytest.mark.parametrize("disguise", [r"1\cdot({})", r"{}+0", r"\frac{{{}}}{{1}}"])
@pytest.mark.parametrize("name", ["math", "math_train"])
def test_expressions_equal_themselves_also_by_algebra(verifier, name, disguise):
    golds = []
    for gold in golds_of(name):
        gold = gold.strip().rstrip(".")
        form = read_form(gold)
        # Units, percent, bases, clock times and words are no expressions to compute with.
        other = re.search(r"[%:]|_|text|mbox", gold)
        if form.kind == "expression" and form.unit is None and not other:
            golds.append(gold)
    assert len(golds) > 400
    assert failures(verifier, golds, [disguise.format(gold) for gold in golds]) == []
