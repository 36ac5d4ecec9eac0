"""Verifiers: answers found, verdicts with reasons, and the seam to TRL's reward functions."""

import math
import os

import numpy as np
import pytest

from anytime_lab.verify import verifiers
from anytime_lab.verify.verifiers import (
    CountdownVerifier,
    ExactVerifier,
    FunctionVerifier,
    Grade,
    MathVerifier,
    MultipleChoiceVerifier,
    find_answer,
)

THOUGHT = "<think>\nlet me see"
HEADER = "</think>\n\n**Final Answer**\n"


@pytest.fixture(scope="module")
def maths():
    verifier = MathVerifier(workers=2)
    yield verifier
    verifier.close()


def stated(answer):
    return f"{THOUGHT}{HEADER}\\boxed{{{answer}}}"


# Finding the answer


@pytest.mark.parametrize(
    ("summary", "answer"),
    [
        (r"\boxed{42}", "42"),
        (r"\boxed{\frac{1}{2}} is it", r"\frac{1}{2}"),
        (r"\boxed{\{x \mid x > 0\}}", r"\{x \mid x > 0\}"),
        (r"\boxed{a\}b}", r"a\}b"),
        (r"\boxed {7}", "7"),
        (r"\boxed 7.", "7"),
        (r"\fbox{7}", "7"),
        (r"\framebox[3cm][c]{7}", "7"),
        (r"\boxed{\boxed{7}}", r"\boxed{7}"),
        (r"\boxed{1} and then \boxed{2}", "1"),
        (r"$\boxed{1}$ and $\boxed{2}$", "1, 2"),
        (r"\boxed{1}, \boxed{2}", "1, 2"),
        (r"\boxed{}, so \boxed{3}", "3"),
        (r"\boxed{4", None),
        (r"so \boxed{4", "so"),
        (r"\boxed{\frac{1}{2}", None),
        (r"The answer is $x = 5$.", "x = 5"),
        (r"The answer is $5$, as $6 - 1 = 5$." + "\n\n7", "6 - 1 = 5"),
        ("We get 12 of 15.\n\nThat leaves 3.", "15"),
        ("So the answer is 1,234.5", "1,234.5"),
        ("It is 5 cm", "5 cm"),
        ("The result is:\n\n$$\\frac{3}{4}$$", r"\frac{3}{4}"),
        (r"\[ x^2 \]", "x^2"),
        ("The answer is 5. There are 3 cases.", "5"),
        ("The answer is not given. It must be $7$.", "7"),
        ("The solutions are $2$ and $3$.", "2, 3"),
        ("The roots are 1, 2 or 3.", "1, 2 or 3"),
        ("With $n=3$, $12$ is the largest.", "12"),
        ("The point is (2, -3).", "(2, -3)"),
        ("The value is x-5.", "x-5"),
        ("The side is sqrt(3).", "sqrt(3)"),
        ("It leaves 5 (mod 7) apples of 9.", "9"),
        ("答案是 5。", "5"),
        ("**Answer:** 5", "5"),
        ("Answers: 2, 3", "2, 3"),
        ("**Evelyn**", "Evelyn"),
        ("", None),
        ("  \n\n ", None),
        ("***", None),
    ],
)
def test_the_answer_is_what_the_summary_states(summary, answer):
    assert find_answer(THOUGHT + HEADER + summary) == answer


def test_a_box_or_header_in_the_thinking_is_not_the_answer():
    thinking = "<think>\n**Final Answer**\n\\boxed{1} no, wait"
    assert find_answer(thinking + HEADER + r"\boxed{2}") == "2"
    assert find_answer(thinking + HEADER) is None


def test_without_a_think_marker_the_last_headercounts():
    text = "**Final Answer**\n\\boxed{1}\n**Final Answer**\n\\boxed{2}"
    assert find_answer(text, think_close=None) == "2"
    assert find_answer("so it is \\boxed{3}", header=None, think_close=None) == "3"


# Reasons


def test_each_zero_has_its_reason(maths):
    grades = maths.grade(
        [
            stated("42"),
            stated("41"),
            THOUGHT + HEADER,
            stated(r"\frac{x}{"),
            stated(r"x^{") + "}",
            stated("9" * 5000),
            THOUGHT + "\\boxed{42}",
            THOUGHT + "</think>" + HEADER + "\\boxed{42}",
        ],
        [42] * 8,
    )
    assert [grade.reason for grade in grades] == [
        "correct",
        "wrong",
        "no answer",
        "no answer",
        "unparsable",
        "too long",
        "format",
        "format",
    ]
    assert [grade.score for grade in grades] == [1.0] + [0.0] * 7
    assert [grade.answer for grade in grades][:3] == ["42", "41", None]


def test_a_model_without_think_markers_is_not_checked_for_them():
    verifier = MathVerifier(think_close=None, header=None)
    assert verifier.grade(["so it is \\boxed{42}"], [42]) == [Grade(1.0, "42", "correct")]


@pytest.mark.parametrize("gold", [None, "", "  ", float("nan"), math.inf, [], True, {"a": 1}, [""]])
def test_an_unreadable_gold_makes_the_grader_abstain(maths, gold):
    assert maths.grade([stated("5")], [gold]) == [Grade(None, "5", "unreadable gold")]


@pytest.mark.parametrize(
    "gold",
    ["142", 142, 142.0, "142.0", " 142\n", "$142$", r"\boxed{142}", r"142 \text{ cm}", "0142"]
    + [["142"], ("7", "142"), np.int64(142), np.float32(142), np.array([142]), "142."],
)
def test_golds_come_as_the_world_has_them(maths, gold):
    assert maths.grade([stated("142"), stated("143")], [gold, gold]) == [
        Grade(1.0, "142", "correct"),
        Grade(0.0, "143", "wrong"),
    ]


def test_a_list_of_golds_accepts_any_of_them_or_asks_for_all():
    any_of, all_of = MathVerifier(), MathVerifier(require_all=True)
    golds = [["2", "-2"]] * 4
    answers = ["2", "-2, 2", r"\pm 2", "2, 3"]
    assert [g.score for g in any_of.grade_answers(answers, golds)] == [1.0, 0.0, 0.0, 0.0]
    assert [g.score for g in all_of.grade_answers(answers, golds)] == [0.0, 1.0, 1.0, 0.0]


def test_golds_that_cannot_be_read_are_told_apart(maths):
    problems = maths.read_golds(["5", r"\frac{1}{x}", "", r"\frac{1", None, ["1", "2"]])
    assert [bool(problem) for problem in problems] == [False, False, True, True, True, False]


def test_grades_do_not_depend_on_order_company_or_repetition(maths):
    answers = [r"\sqrt{8}", "x+x", "7", r"\frac{x^2-1}{x-1}", "x^2"]
    golds = [r"2\sqrt{2}", "2x", "8", "x+1", "2x"]
    expected = [1.0, 1.0, 0.0, 1.0, 0.0]
    order = [3, 0, 4, 1, 2, 0, 3]
    grades = maths.grade_answers([answers[i] for i in order], [golds[i] for i in order])
    assert [grade.score for grade in grades] == [expected[i] for i in order]
    fresh = MathVerifier(workers=1)
    assert [
        fresh.grade_answers([a], [g])[0].score for a, g in zip(answers, golds, strict=True)
    ] == (expected)
    fresh.close()


def test_string_and_number_equality_never_reach_a_worker():
    verifier = MathVerifier()
    answers = ["5", "0.5", "1,000", r"\dfrac12", "x + 1", "(1, 2)", r"50\%", "Evelyn", "6", "[1,2]"]
    golds = ["5", r"\frac12", "1000", ".5", "x+1", "(1,2)", "50", r"\text{Evelyn}", "5", "(1,2)"]
    grades = verifier.grade_answers(answers, golds)
    assert [grade.score for grade in grades] == [1.0] * 8 + [0.0] * 2
    assert verifier.counts["in workers"] == 0
    assert verifier.pool.processes() == []


def test_only_so_many_verdicts_are_kept(monkeypatch):
    monkeypatch.setattr(verifiers, "REMEMBERED", 3)
    verifier = MathVerifier()
    verifier.grade_answers([str(n) for n in range(9)], ["5"] * 9)
    assert len(verifier._known) == 3
    assert verifier.grade_answers(["5", "6"], ["5", "5"])[0].score == 1.0


def test_equal_texts_of_golds_of_other_types_are_kept_apart(maths):
    grades = maths.grade_answers(["1", "1"], [1, True])
    assert [grade.reason for grade in grades] == ["correct", "unreadable gold"]


@pytest.mark.parametrize("verifier", [MathVerifier(), ExactVerifier(), CountdownVerifier()])
def test_texts_and_golds_of_unequal_number_are_refused(verifier):
    with pytest.raises(ValueError, match="got 2 texts and 1 golds"):
        verifier.grade([stated("1")] * 2, ["1"])
    with pytest.raises(TypeError, match="texts is 'abc'; expected a list"):
        verifier.grade("abc", ["a", "b", "c"])
    with pytest.raises(TypeError, match="golds is 'abc'; expected a list"):
        verifier.grade([stated("1")] * 3, "abc")
    with pytest.raises(TypeError, match=r"answers\[1\] is 5; expected text"):
        verifier.grade_answers(["5", 5], ["5", "5"])


# TRL's seam


def test_a_verifier_is_a_reward_function_as_trl_calls_it():
    logged = {}
    verifier = CountdownVerifier()
    scores = verifier(
        prompts=["p"] * 3,
        completions=[stated("(7-6)*3"), stated("7*3-6"), THOUGHT],
        completion_ids=[[1], [2], [3]],
        answer=["(7-6)*3"] * 3,
        question=["q"] * 3,
        trainer_state=object(),
        log_extra=lambda name, values: None,
        log_metric=logged.__setitem__,
    )
    assert scores == [1.0, 0.0, 0.0]
    names = ("timed_out", "out_of_memory", "crashed")
    assert logged == {f"countdown/{name}": 0.0 for name in names}
    assert verifier.__name__ == "countdown"


def test_conversations_are_read_like_texts():
    completions = [
        [{"role": "assistant", "content": stated("7")}],
        [{"role": "a", "content": None}],
        [{"role": "a", "content": [{"type": "text", "text": stated("7")}, {"type": "image"}]}],
    ]
    scores = ExactVerifier()(prompts=[""] * 3, completions=completions, answer=["7"] * 3)
    assert scores == [1.0, 0.0, 1.0]


def test_the_column_of_golds_and_the_name_can_be_chosen():
    verifier = ExactVerifier(answer_column="solution", name="strict")
    assert verifier(prompts=[""], completions=[stated("7")], solution=["7"]) == [1.0]
    assert verifier.__name__ == "strict"
    with pytest.raises(ValueError, match=r"no column 'solution'.*has \['answer'\].*answer_column="):
        verifier(prompts=[""], completions=[stated("7")], answer=["7"])


def test_an_abstaining_verifier_gives_none(maths):
    assert maths(prompts=[""], completions=[stated("7")], answer=[None]) == [None]


# The other verifiers


@pytest.mark.parametrize(
    ("answer", "score", "reason"),
    [
        ("(7-6)*3", 1.0, "correct"),
        ("3*(7-6)", 1.0, "correct"),
        ("3 × (7 − 6)", 1.0, "correct"),
        (r"3 \times (7 - 6)", 1.0, "correct"),
        (r"\left(7-6\right) \cdot 3", 1.0, "correct"),
        ("(7-6)*3 = 3", 1.0, "correct"),
        ("3/(7-6)", 1.0, "correct"),
        ("(7-6)*3 = 4", 0.0, "unparsable"),
        ("3", 0.0, "wrong"),
        ("7-6+3-1", 0.0, "wrong"),
        ("(7-6)*3*1", 0.0, "wrong"),
        ("7*3-6", 0.0, "wrong"),
        ("3/(7-7)", 0.0, "wrong"),
        ("(7-6)3", 0.0, "unparsable"),
        ("-(6-7)*3", 0.0, "unparsable"),
        ("(7-6", 0.0, "unparsable"),
        ("7-6)*3", 0.0, "unparsable"),
        ("76", 0.0, "wrong"),
        ("3**1", 0.0, "unparsable"),
        ("__import__('os')", 0.0, "unparsable"),
        ("9" * 2000, 0.0, "unparsable"),
    ],
)
def test_countdown_wants_the_numbers_each_once_and_the_value(answer, score, reason):
    assert CountdownVerifier().grade([stated(answer)], ["(7-6)*3"])[0] == Grade(
        score, answer, reason
    )


def test_countdown_reads_a_line_without_a_box_and_keeps_numbers_apart():
    verifier = CountdownVerifier()
    assert verifier.grade([THOUGHT + HEADER + "(7-6)*3\nbecause"], ["(7-6)*3"])[0].score == 1.0
    # The same value from other numbers, and the same number twice.
    golds = ["2*6", "6+6"]
    assert [g.score for g in verifier.grade([stated("3*4"), stated("6+6")], golds)] == [0.0, 1.0]


@pytest.mark.parametrize("gold", ["7-", "", None, "1/0"])
def test_countdown_abstains_from_a_gold_that_is_no_solution(gold):
    assert CountdownVerifier().grade([stated("1")], [gold])[0] == Grade(
        None, "1", "unreadable gold"
    )


def test_exact_compares_trimmed_text_and_takes_a_way_to_normalise():
    assert [g.score for g in ExactVerifier().grade([stated(" a "), stated("A")], ["a", "a"])] == [
        1,
        0,
    ]
    assert ExactVerifier().grade([stated("7")], [[6, 7]])[0].score == 1.0
    assert ExactVerifier().grade([stated("0.5")], [r"\frac12"])[0].reason == "wrong"


@pytest.mark.parametrize(
    ("summary", "score"),
    [
        (r"\boxed{C}", 1.0),
        (r"\boxed{(C)}", 1.0),
        (r"\boxed{c}", 1.0),
        (r"\boxed{\text{C}}", 1.0),
        (r"\boxed{\textbf{(C)}\ 12}", 1.0),
        (r"\boxed{C. Paris}", 1.0),
        ("**C.** Paris", 1.0),
        ("The answer is C.", 1.0),
        ("The correct answer is (C) Paris.", 1.0),
        ("I choose option C because of A.", 1.0),
        (r"\boxed{B}", 0.0),
        (r"\boxed{CC}", 0.0),
        (r"\boxed{A or C}", 0.0),
        (r"\boxed{Cat}", 0.0),
        (r"\boxed{12}", 0.0),
        ("A cat sat", 0.0),
        ("", 0.0),
    ],
)
def test_multiple_choice_wants_the_letter(summary, score):
    assert MultipleChoiceVerifier().grade([THOUGHT + HEADER + summary], ["C"])[0].score == score


def test_multiple_choice_reads_golds_and_letters_as_given():
    verifier = MultipleChoiceVerifier(letters="ABCDEFGHIJ")
    texts = [stated("J"), stated("J"), stated("J"), stated("J")]
    grades = verifier.grade(texts, ["(J)", ["A", "J"], "Z", ""])
    assert [grade.score for grade in grades] == [1.0, 1.0, None, None]
    for letters in ("abc", "AAB", "A-", ""):
        with pytest.raises(ValueError, match="expected distinct capitals"):
            MultipleChoiceVerifier(letters=letters)


def test_a_user_function_scores_in_a_worker(tmp_path, monkeypatch):
    (tmp_path / "my_grader.py").write_text(
        "import os\n\n\n"
        "def score(answer, gold):\n"
        "    if answer == 'half': return 0.5\n"
        "    if answer == 'none': return None\n"
        "    if answer == 'nan': return float('nan')\n"
        "    if answer == 'text': return 'good'\n"
        "    if answer == 'huge': return 10 ** 400\n"
        "    if answer == 'minus': return -1\n"
        "    if answer == 'pid': return os.getpid()\n"
        "    if answer == 'yes': return answer == gold['is']\n"
        "    raise KeyError(answer)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    verifier = FunctionVerifier("my_grader:score", workers=1)
    answers = ["half", "none", "nan", "text", "huge", "minus", "yes", "other"]
    grades = verifier.grade_answers(answers, [{"is": "yes"}] * 8)
    assert [grade.score for grade in grades] == [0.5, None, None, 0.0, 0.0, -1.0, 1.0, 0.0]
    assert grades[2].reason == "abstained"
    assert "gave 'good'; expected a number" in grades[3].reason
    assert grades[7].reason == "KeyError: 'other'"
    assert verifier.grade_answers(["pid"], [{}])[0].score != os.getpid()
    assert verifier.__name__ == "score"
    verifier.close()


@pytest.mark.parametrize("function", ["", "module", ":name", "module:", len])
def test_a_function_that_workers_cannot_import_is_refused_at_once(function):
    with pytest.raises(ValueError, match="expected the path of a function"):
        FunctionVerifier(function)
