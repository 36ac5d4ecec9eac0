"""The grader against a table worked by hand, and against plain math-verify on the same table.

A row of `data/grades.jsonl`: an answer, a gold (a list accepts any of its entries), whether the
answer is right, the topic, and `differs`: why plain math-verify deliberately says otherwise.
"""

import json
import logging
from collections import Counter
from pathlib import Path

import pytest

from anytime_lab.verify import MathVerifier

ROWS = [
    json.loads(line)
    for line in (Path(__file__).parent / "data" / "grades.jsonl")
    .read_text(encoding="utf-8")
    .splitlines()
]
# In the way of MIT's Minerva set and OlympiadBench, whose golds are harder to read than MATH's.
GOLDS_WITH_UNITS = r"""
1.24e-8 | 4.46e19 | 6.5e-2 | 1e11 | 2e27 | 9.35e5 | -0.2 | .75 | -3./2 | 1.325e-27 | 5e-6
3.3 \times 10^{12} | 7.353 \times 10^{-14} | 10^{-6} | -1.6\times10^{-19} \mathrm{C} | 6.626e-34
9.8 \mathrm{~m} / \mathrm{s}^{2} | 1.6 \mathrm{~cm} | 4.5e33 \text{ erg/s} | 300 \mathrm{~K}
0.36 \mathrm{~nm} | 25^{\circ} \mathrm{C} | 90^{\circ} | 1.5 \mathrm{eV} | 20 \text{ } \Omega
m l \ddot{\theta}(t)-m g \sin \theta(t)=f(t) \cos \theta(t) | \frac{1}{2a}(\exp{a*t} - \exp{-a*t})
\hbar \omega(v+1 / 2)-\frac{E_{0}^{2} e^{2}}{2 m \omega^{2}} | \frac{1}{3} E_{1}+\frac{2}{3} E_{2}
\frac{a M^{1 / 3}}{G M^{2 / 3}+b} | 100 p^{\frac{1}{2}} | \frac{2}{3} \frac{C}{S} | SRMC=LRMC
np.arcsin(10/13) | I(0) e^{-\frac{t}{R C}} | \left(\frac{3}{4}\right)^{2} | e^{-2t}u(t)
$n^{2}+1$ | $p(x)=\frac{(x-1)(x-2)}{6}$ | $2RC+R+C$ | $64,\frac{1}{4}$ | $k=2 n-1$ | $8 \%$
$(4, \log _{10} 2)$ | $f(z)=z$ | $f(n) = 2 n+1007$ | $4-2 \sqrt{3}$ | $\frac{800}{3}$ | 996000
$(-\infty,-8)$ | $[-2,2]$ | $\left[\frac{1}{2}, 1\right)$ | $(1,1),(1,2),(2,1)$ | $\pm \sqrt{7}$
$\frac{n^{2}-n+1}{2}$ | $\binom{2n}{n}$ | $2^{n-1}$ | $\lfloor\frac{n}{2}\rfloor+1$ | $n!$
$(0,0),(1,-1)$ | $x=\frac{\pi}{4}+k \pi$ | $0<x \leq 1$ | $\sqrt[3]{4}-1$ | $10^{\circ}, 50^{\circ}$
"""


@pytest.fixture(scope="module")
def verifier():
    with_workers = MathVerifier(workers=2)
    yield with_workers
    with_workers.close()


def plainly_equal(answer, gold):
    """math-verify alone, as its README shows it."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    given = parse(f"\\boxed{{{answer}}}", parsing_timeout=None)
    return bool(verify(parse(f"${gold}$", parsing_timeout=None), given, timeout_seconds=None))


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


def test_each_disagreement_with_plain_math_verify_is_a_named_one(record_property):
    rows = [r for r in ROWS if not isinstance(r["gold"], list)]
    agree = {id(r): plainly_equal(r["answer"], r["gold"]) == r["right"] for r in rows}
    assert [r for r in rows if not agree[id(r)] and not r["differs"]] == []
    assert [r for r in rows if agree[id(r)] and r["differs"]] == []
    named = Counter(r["differs"] for r in rows if r["differs"])
    record_property("agreement", f"{sum(agree.values())} of {len(rows)}")
    print(f"\nplain math-verify agrees on {sum(agree.values())} of {len(rows)} rows; named:")
    print("".join(f"  {name}: {count}\n" for name, count in named.most_common()))
    assert sum(agree.values()) >= 0.75 * len(rows)


def test_golds_with_units_and_powers_of_ten_equal_themselves(verifier):
    golds = [gold.strip() for gold in GOLDS_WITH_UNITS.replace("\n", " | ").split(" | ")]
    golds = [gold for gold in golds if gold]
    assert len(golds) > 60
    assert [problem for problem in verifier.read_golds(golds) if problem] == []
    for change in (
        lambda gold: gold,
        lambda gold: gold.replace(r"\frac", r"\dfrac").replace(r"\mathrm", r"\text"),
        lambda gold: gold.strip("$"),
        lambda gold: gold.replace("{~", "{").replace(r"\left", "").replace(r"\right", "") + ".",
    ):
        grades = verifier.grade_answers([change(gold) for gold in golds], golds)
        assert [(g, x) for g, x in zip(golds, grades, strict=True) if x.score != 1.0] == []
