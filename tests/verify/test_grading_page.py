"""The page that tells the rules of grading: each of its examples is graded."""

import re
from pathlib import Path

from anytime_lab.verify.verifiers import CountdownVerifier

PAGE = (Path(__file__).parents[2] / "docs" / "grading.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(?P<answer>.+?)` \| `(?P<gold>.+?)` \| (?P<sign>[✓✗]) \|$", re.M)
BEGIN = "so ...</think>\n\n**Final Answer**\n"


def test_each_example_of_the_page_gets_its_verdict(verifier):
    texts, answers = PAGE.split("**Numbers**")
    rows = [(True, *m.groups()) for m in ROW.finditer(texts)]
    rows += [(False, *m.groups()) for m in ROW.finditer(answers)]
    assert len(rows) >= 25
    for free, answer, gold, sign in rows:
        text = BEGIN + (answer if free else f"\\boxed{{{answer}}}")
        assert verifier.grade([text], [gold])[0].score == (sign == "✓"), (answer, gold)


def test_its_countdown_answers_are_read():
    answers = ["\\frac{3}{7-6}", "x = 3/(7-6)", "\\frac{3}{7}-6", "x = 3"]
    grades = CountdownVerifier().grade_answers(answers, ["3/(7-6)"] * 4)
    assert [grade.score for grade in grades] == [1.0, 1.0, 0.0, 0.0]
