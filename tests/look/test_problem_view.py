"""Inside one problem: which problems come first, the text around the cut, turns of the answer."""

import re

import numpy as np
import pytest
from made_runs import BUDGETS, random_right, text_of, told, write_run

from anytime_lab.look.problem_view import InsideProblem, told_path
from anytime_lab.read.curves import ProblemTable, problem_table
from anytime_lab.read.runs import ThinkingStore, answer_path, order_problems
from anytime_lab.store.records import part_path, read_records

# one problem, one sample, budgets 8 16 24 32, two summaries
TURNS = [[[["7", "3"], ["1", "1"], ["5", "1"], ["1", "1"]]]]
RIGHT = [[[[0, 0], [1, 1], [0, 1], [1, 1]]]]


@pytest.fixture
def turning(tmp_path):
    return write_run(tmp_path / "turning", RIGHT, answers=TURNS)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "ar", random_right(p=12, seed=2, lead=0.2), parts=3)
    write_run(folder / "grpo", random_right(p=12, seed=1), parts=2)
    return [folder / "ar", folder / "grpo"]


def kept(view):
    html = view.sides[0].thinking.value
    inside = re.search(r'<span class="kept">(.*?)</span><span class="rest">', html, re.S)[1]
    return re.sub(r'<span class="mark[^>]*>.*?</span>', "", inside)


def words(html):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html)).strip()


# --- along a thinking ----------------------------------------------------------------------------


def test_the_turns_of_an_answer_are_found(turning):
    path = answer_path(read_records(turning))
    # tied answers: the first one given; "5" at 24 has one of two votes and is wrong
    assert path["answer"].tolist() == ["7", "1", "5", "1"]
    assert path["votes"].tolist() == [0.5, 1, 0.5, 1]
    assert path["share_right"].tolist() == [0, 1, 0.5, 1]
    assert path["flip"].tolist() == [False, True, True, True]
    assert path["first_right"].tolist() == [False, True, False, False]
    assert path["lost"].tolist() == [False, False, True, False]
    assert told_path(path) == (
        "The answer flips 3 times, is first right at 16 tokens and is lost again at 24 tokens."
    )


def test_no_answer_is_an_answer_of_its_own_and_never_right(tmp_path):
    answers = [[[[None], [None], ["1"], [None]]]]
    write_run(tmp_path / "run", [[[[0], [0], [1], [0]]]], answers=answers)
    path = answer_path(read_records(tmp_path / "run"))
    assert path["answer"].tolist() == [None, None, "1", None]
    assert path["flip"].tolist() == [False, False, True, True]
    assert path["right"].tolist() == [False, False, True, False]
    assert "is lost again at 32" in told_path(path)


def test_the_text_is_strong_up_to_the_cut(turning):
    view = InsideProblem([turning], budget=8)
    assert kept(view) == text_of(8)[0]
    view.live.move_to(24)
    assert kept(view) == text_of(24)[0]
    assert "24 of 32 tokens" in words(view.sides[0].position.value)
    assert 'class="wrong">not right' in view.sides[0].position.value
    assert view.live.stop == 24 == view.budget


def test_marks_stand_in_the_text_where_the_answer_turned(turning):
    html = InsideProblem([turning], budget=8).sides[0].thinking.value
    marks = [words(m) for m in re.findall(r'<span class="mark[^>]*>(.*?)</span>', html)]
    assert marks == [
        "16 tokens ★ first right: 1",
        "24 tokens ✗ lost: 5",
        "32 tokens ▼ 1",
    ]
    before = re.split(r'<span class="mark[^>]*>16 tokens', html)[0]
    assert words(before) == words(text_of(16)[0])


def test_the_curve_shows_the_turns_in_place(turning):
    view = InsideProblem([turning])
    share, turns = view.live.figure.data
    assert share.x == BUDGETS and share.y == (0, 1, 0.5, 1)
    assert turns.x == (16, 24, 32) and turns.marker.symbol == ("star", "x", "triangle-down")
    assert share.meta["riding"][1] == [16, 1.0, "1"]
    static = view.figure()
    assert [list(t.x) for t in static.data] == [list(t.x) for t in view.live.figure.data]


def test_a_thinking_that_ended_early_says_so(tmp_path):
    write_run(tmp_path / "run", np.ones((1, 1, 4, 1)), lengths=[[10]])
    view = InsideProblem([tmp_path / "run"], budget=32)
    assert "10 of 10 tokens, the whole thinking (closed by itself)" in words(
        view.sides[0].position.value
    )
    assert kept(view) == text_of(10)[0]


def test_summaries_come_with_verdict_and_log_prob(turning):
    view = InsideProblem([turning], budget=24)
    rows = re.findall(r"<tr>(.*?)</tr>", view.sides[0].summaries.value)[1:]
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]
    assert [c[1:4] for c in cells] == [["5", "wrong", "−1.10"], ["1", "right", "−0.20"]]
    assert "Summaries at 24 tokens" in view.sides[0].summaries.value


def test_an_abstained_verdict_is_told(tmp_path):
    write_run(tmp_path / "run", np.full((1, 1, 4, 1), np.nan))
    assert "abstained" in InsideProblem([tmp_path / "run"]).sides[0].summaries.value


# --- moving --------------------------------------------------------------------------------------


def test_play_has_the_page_move_the_line(turning):
    view = InsideProblem([turning], budget=8)
    view.play.value = True
    assert view.live.playing
    view.live.at, view.live.playing = 3, False  # told by the page at the last stop
    assert not view.play.value and kept(view) == text_of(32)[0]


def test_another_sample_and_another_problem_are_read(pair):
    view = InsideProblem(pair, budget=24)
    records = read_records(pair[0])
    for problem in ("p3", "p11"):
        view.problem.value = problem
        for sample in (3, 1):
            view.sides[0].sample.value = sample
            part = records[(records["problem_id"] == problem) & (records["sample"] == sample)]
            told = part.groupby("budget")["correct"].mean().tolist()
            assert list(view.live.figure.data[0].y) == told
            assert f"sample {sample}" in view.sides[0].thinking.value


# --- which problems ------------------------------------------------------------------------------


def made(values, names="abcd"):
    values = np.array(values, dtype=float)[:, None]
    return ProblemTable(np.array(list(names[: len(values)])), (8,), values, values)


def test_problems_that_a_solves_and_b_does_not_come_first():
    a, b = made([0.5, 1, 1, 0]), made([0.5, 1, 0, 1])
    assert [p for p, *_ in order_problems(a, b, 8, "a over b")] == ["c", "a", "b", "d"]
    assert [p for p, *_ in order_problems(a, b, 8, "b over a")] == ["d", "a", "b", "c"]
    assert [p for p, *_ in order_problems(a, b, 8, "hard")] == ["d", "a", "b", "c"]
    assert [p for p, *_ in order_problems(a, None, 8, "name")] == ["a", "b", "c", "d"]
    # what B was not asked comes last, whatever A scored
    known = order_problems(a, made([1], "a"), 8, "a over b")
    assert known[0] == ("a", 0.5, 1.0) and all(np.isnan(row[2]) for row in known[1:])


def test_the_list_follows_runs_budget_and_order(pair):
    view = InsideProblem(pair, budget=16)
    tables = [problem_table(read_records(p)) for p in pair]

    def leads(j, sign):
        return sign * (tables[0].values[:, j] - tables[1].values[:, j])

    names = [str(p) for p in tables[0].problems]
    listed = [value for _, value in view.problem.options]
    lead = dict(zip(names, leads(1, 1), strict=True))
    assert [lead[p] for p in listed] == sorted(lead.values(), reverse=True)
    view.order.value = "b over a"
    assert view.relist.layout.display == "none"
    view.live.move_to(32)
    assert view.relist.description == "List at 32 tokens"
    view.relist.click()
    lead = dict(zip(names, leads(3, -1), strict=True))
    assert lead[view.problem.value] == max(lead.values())
    view.b.value = None
    assert "right" in view.problem.options[0][0] and "B" not in view.problem.options[0][0]


def test_two_thinkings_of_a_problem_stand_side_by_side(tmp_path):
    write_run(tmp_path / "a", [[[[0], [0], [1], [1]]], [[[1]] * 4]])
    write_run(tmp_path / "b", [[[[0]] * 4], [[[1]] * 4]])
    view = InsideProblem([tmp_path / "a", tmp_path / "b"], budget=24)
    assert view.problem.value == "p0" and "not right" in view.sides[1].position.value
    assert [t.name for t in view.figure().data if t.showlegend is None] == ["a", "b"]
    assert len(view.problem.options) == 2
    view.apart.value = True
    assert [problem for _, problem in view.problem.options] == ["p0"]
    view.live.move_to(8)
    view.relist.click()
    assert "disagree on no problem" in view.notes.value and not view.problem.options


def test_the_first_example_is_one_that_turned(tmp_path):
    always, turns = [[1]] * 4, [[0], [0], [1], [1]]
    write_run(tmp_path / "a", [[always, always], [always, turns]])
    write_run(tmp_path / "b", [[[[0]] * 4] * 2] * 2)
    view = InsideProblem([tmp_path / "a", tmp_path / "b"], budget=24)
    assert view.problem.value == "p1" and view.sides[0].sample.value == 1


def test_only_the_parts_of_a_thinking_are_read(pair):
    store = ThinkingStore(pair[0])
    assert sorted(store.parts["p5"]) == [0, 1, 2, 3]
    part_path(pair[0], "thinkings", 2).rename(pair[0] / "aside")  # samples 2 of 3 parts
    try:
        thought = store.thought("p5", 3, store.records("p5"))  # lies in part 0
        assert thought.thinking == text_of(32)[0] and len(thought.records) == 8
    finally:
        (pair[0] / "aside").rename(part_path(pair[0], "thinkings", 2))


# --- hostile text --------------------------------------------------------------------------------

HOSTILE = (
    "<img src=x onerror=alert(1)></script><script>alert(2)</script>\\(x^2\\) $y$ \x1b[31m\u202e"
)


def test_text_of_models_and_problems_cannot_act(tmp_path):
    write_run(
        tmp_path / "run",
        np.ones((1, 1, 4, 1)),
        answers=[[[[HOSTILE]] * 4]],
        thinking=HOSTILE * 3,
        question=HOSTILE,
        summary_text=HOSTILE,
        problems=[HOSTILE],
    )
    view = InsideProblem([tmp_path / "run"])
    side = view.sides[0]
    parts = (view.question, side.position, side.thinking, side.summaries, view.notes)
    html = "".join(part.value for part in parts)
    assert html.count("&lt;img") >= 5
    for bad in ("<img", "<script", "</script", "\x1b", "\u202e"):
        assert bad not in html
    assert all("mathjax_ignore" in part.value for part in parts)
    hover = str(view.live.figure.data[0].customdata) + str(view.figure().layout.title.text)
    assert "<img" not in hover and "$" not in hover
    assert "\x1b" not in str(view.problem.options)


def test_a_thinking_of_megabytes_is_shown_around_its_cut(tmp_path):
    write_run(tmp_path / "run", np.ones((1, 1, 4, 1)), thinking="x" * 3_000_000)
    view = InsideProblem([tmp_path / "run"])
    assert len(view.sides[0].thinking.value) < 40_000
    assert "characters after are not shown" in view.sides[0].thinking.value


# --- bad folders ---------------------------------------------------------------------------------


def test_a_damaged_part_is_a_sentence(tmp_path):
    write_run(tmp_path / "run", random_right(p=3, n=2), parts=2)
    part_path(tmp_path / "run", "thinkings", 1).write_bytes(b"no")
    view = InsideProblem([tmp_path / "run"])
    assert "is damaged" in view.sides[0].notes.value and view.sides[0].thought is None
    assert "no thinking is open" in told(view.picture())


def test_a_lost_thinking_is_a_sentence_and_the_others_open(tmp_path):
    write_run(tmp_path / "run", random_right(p=3, n=2), parts=2)
    view = InsideProblem([tmp_path / "run"])
    part_path(tmp_path / "run", "thinkings", 1).unlink()
    view.sides[0].sample.value = 1
    assert "is missing" in view.sides[0].notes.value
    assert "span" not in view.sides[0].thinking.value
    view.sides[0].sample.value = 0
    assert kept(view) != "" and "is missing" not in view.sides[0].notes.value


def test_empty_folders_are_sentences(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "is empty" in InsideProblem([tmp_path / "empty"]).notes.value
    write_run(tmp_path / "new", random_right(p=2), written=0)
    view = InsideProblem([tmp_path / "new"])
    assert "no finished part yet" in view.notes.value and view.sides[0].thought is None
    view.live.move_to(0)
    view.play.value = True


def test_every_control_has_a_label(turning):
    view = InsideProblem([turning])
    controls = [view.a, view.b, view.apart, view.order, view.problem, view.relist]
    controls += [side.sample for side in view.sides]
    assert all(control.description for control in [*controls, view.play])
