"""The grader against a table worked by hand, and against plain math-verify on the same table.

A row of `data/grades.jsonl`: an answer, a gold (a list accepts any of its entries), whether the
answer is right, the topic, and `differs`: why plain math-verify deliberately says otherwise.
"""

import functools
import json
import logging
from collections import Counter
from pathlib import Path

import pytest

from anytime_lab.verify.verifiers import MathVerifier

ROWS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data" / "grades.jsonl")
    .read_text(encoding="utf-8")
    .splitlines()
]


def gold_lines():
    """(gold, ways that are right, ways that are wrong, why math-verify differs) of `golds.txt`."""
    text = (Path(__file__).parents[1] / "data" / "golds.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        if not line.startswith("#"):
            line, _, differs = line.partition(" ## ")
            ways, *wrong = line.split(" !! ")
            gold, *right = ways.split(" || ")
            yield gold, right, wrong, differs


GOLDS = list(gold_lines())


@functools.cache
def plainly_read(text):
    from math_verify import parse

    return parse(text, parsing_timeout=None)


def plainly_equal(answer, gold):
    """math-verify alone, as its README shows it."""
    from math_verify import verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    wanted = plainly_read(gold if str(gold).startswith("$") else f"${gold}$")
    return bool(verify(wanted, plainly_read(f"\\boxed{{{answer}}}"), timeout_seconds=None))


def test_every_row_gets_the_verdict_written_beside_it(verifier):
    grades = verifier.grade_answers([r["answer"] for r in ROWS], [r["gold"] for r in ROWS])
    wrong = [(r, g) for r, g in zip(ROWS, grades, strict=True) if g.score != float(r["right"])]
    assert wrong == []


def test_the_table_is_large_and_holds_both_verdicts_of_each_topic():
    assert len(ROWS) >= 150
    assert len({json.dumps([r["answer"], r["gold"]]) for r in ROWS}) == len(ROWS)
    counts = Counter((r["topic"], r["right"]) for r in ROWS)
    assert sum(r["right"] for r in ROWS) >= 75 and sum(not r["right"] for r in ROWS) >= 75
    assert all(counts[topic, verdict] for topic, _ in counts for verdict in (True, False))


def test_verdicts_survive_being_found_in_a_text_and_asked_for_singly(verifier):
    rows = [r for r in ROWS if r["answer"].strip() and "\\boxed" not in r["answer"]]
    rows = [r for r in rows if r["answer"].count("{") == r["answer"].count("}")]
    texts = [f"so</think>\n\n**Final Answer**\n\\boxed{{{r['answer']}}}." for r in rows]
    verifier.close()
    fresh = MathVerifier(workers=1)
    grades = [fresh.grade([t], [r["gold"]])[0] for t, r in zip(texts, rows, strict=True)]
    fresh.close()
    wrong = [(r, g) for r, g in zip(rows, grades, strict=True) if g.score != float(r["right"])]
    assert wrong == []


def test_each_disagreement_with_plain_math_verify_is_a_named_one(capsys):
    rows = [r for r in ROWS if not isinstance(r["gold"], list)][::3]  # each takes some 0.1 s
    agree = {id(r): plainly_equal(r["answer"], r["gold"]) == r["right"] for r in rows}
    assert [r for r in rows if not agree[id(r)] and not r["differs"]] == []
    assert [r for r in rows if agree[id(r)] and r["differs"]] == []
    named = Counter(r["differs"] for r in rows if r["differs"])
    with capsys.disabled():
        print(f"\nplain math-verify agrees on {sum(agree.values())} of {len(rows)} rows; named:")
        print("".join(f"  {name}: {count}\n" for name, count in named.most_common()))
    assert sum(agree.values()) >= 0.65 * len(rows)


def test_towers_equal_their_own_text_and_cost_no_time(verifier):
    # No row of the table: plain math-verify never comes back from them.
    tower = "9^{9^{9^9}}"
    answers = [tower, "9^{9^{9^{9}}}", f"x = {tower}", "9^{9^9}", "5", tower, "x^{10^9}", "9!!!"]
    golds = [tower, tower, tower, tower, tower, "5", "x", "9"]
    before = verifier.counts["timed out"]
    grades = verifier.grade_answers(answers, golds)
    assert [grade.score for grade in grades] == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert verifier.counts["timed out"] == before


# Obvious ways to write any gold.
REWRITTEN = {
    "itself": lambda gold: gold,
    "on a line of its own": lambda gold: f"\n{gold}\n",
    "without dollars": lambda gold: gold if gold.startswith("$\\$") else gold.strip("$"),
    "in dollars": lambda gold: gold if "$" in gold else f"${gold}$",
    "in display": lambda gold: gold if "$" in gold else rf"\[{gold}\]",
    "with large fractions": lambda gold: gold.replace(r"\frac", r"\dfrac"),
    "with \\text": lambda gold: gold.replace(r"\mathrm", r"\text"),
    "without ties": lambda gold: gold.replace("{~", "{"),
    "with a full stop": lambda gold: gold + ".",
    "without \\left": lambda gold: gold.replace(r"\left", "").replace(r"\right", ""),
    "without spaces in formulas": lambda gold: gold.replace(r"\, ", " ").replace(" +", "+"),
}


def test_golds_with_units_and_powers_of_ten_equal_themselves_however_written(verifier, capsys):
    golds = [gold for gold, *_ in GOLDS]
    assert len(golds) == len(set(golds)) >= 200
    assert [problem for problem in verifier.read_golds(golds) if problem] == []
    failures = []
    for how, rewrite in REWRITTEN.items():
        grades = verifier.grade_answers([rewrite(gold) for gold in golds], golds)
        failures += [(how, g) for g, x in zip(golds, grades, strict=True) if x.score != 1.0]
    assert failures == []
    with capsys.disabled():
        print(f"\n{len(golds)} golds equal themselves in {len(REWRITTEN)} ways")


def test_other_ways_to_state_a_gold_get_the_verdict_written_beside_them(verifier):
    asked = [(a, gold, 1.0) for gold, right, _, _ in GOLDS for a in right]
    asked += [(a, gold, 0.0) for gold, _, wrong, _ in GOLDS for a in wrong]
    assert len(asked) > 600
    answers, golds, scores = zip(*asked, strict=True)
    grades = verifier.grade_answers(answers, golds)
    assert [row for row, x in zip(asked, grades, strict=True) if x.score != row[2]] == []


def test_the_next_gold_of_the_list_is_wrong(verifier):
    golds = [gold for gold, *_ in GOLDS]
    grades = verifier.grade_answers(golds[1:], golds[:-1])
    assert [g for g, x in zip(golds, grades, strict=False) if x.score != 0.0] == []


@pytest.mark.slow
def test_each_line_that_plain_math_verify_grades_otherwise_is_a_named_one(capsys):
    agree = asked = 0
    unnamed, named = [], Counter()
    for gold, right, wrong, differs in GOLDS[::3]:  # each takes some 0.1 s
        verdicts = [plainly_equal(a, gold) for a in [gold, *right]]
        verdicts += [not plainly_equal(a, gold) for a in wrong]
        agree, asked = agree + sum(verdicts), asked + len(verdicts)
        named[differs] += len(verdicts) - sum(verdicts)
        if all(verdicts) == bool(differs):
            unnamed.append((gold, differs, verdicts))
    assert unnamed == []
    with capsys.disabled():
        print(f"\nplain math-verify agrees on {agree} of {asked} answers to golds; named:")
        print("".join(f"  {name}: {count}\n" for name, count in named.most_common() if name))
    assert agree >= 0.8 * asked
