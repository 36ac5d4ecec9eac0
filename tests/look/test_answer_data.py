"""The spread of answers and its history, worked by hand; the figures that show them."""

import math

import numpy as np
import pytest
from made_thoughts import Scripted, answer

from anytime_lab.look.answer_view import (
    BARS,
    ask,
    ask_along,
    asked_html,
    bar_axis,
    bar_trace,
    history,
    plot_asked,
    told_asked,
)
from anytime_lab.verify.verifiers import ExactVerifier

GRADED = ExactVerifier()


def asked(*answers, gold="7", verifier=GRADED, tokens=3):
    thought = Scripted(["a "] * 9, lambda _length, _count: [answer(*a) for a in answers])
    for _ in range(tokens):
        thought.step()
    return ask(thought, len(answers), verifier, gold)


def test_the_spread_counts_answers_and_averages_their_probabilities():
    told = asked(("7", 0.5), ("8", 0.9), ("7", 0.1), (None, 0.2))
    spread = told.spread
    assert spread["answer"].tolist() == ["7", "8", None]  # of those tied, the more probable first
    assert spread["count"].tolist() == [2, 1, 1]
    assert spread["share"].tolist() == [0.5, 0.25, 0.25]
    assert spread["probability"].tolist() == pytest.approx([0.3, 0.9, 0.2])
    assert spread["per_token"].iloc[0] == pytest.approx((0.5**0.5 + 0.1**0.5) / 2)  # two tokens
    assert spread["verdict"].tolist() == ["right", "wrong", "wrong"]
    assert told_asked(told) == (
        "After 3 tokens: 7, right; 2 of 4 summaries, 2 other answers; probability of such a "
        "summary 30%."
    )


def test_without_a_gold_nothing_is_graded():
    told = asked(("7", 0.5), ("7", 0.5), gold=None)
    assert told.spread["verdict"].tolist() == ["not graded"]
    row = history([told]).iloc[0]
    assert row["right"] is None and math.isnan(row["share_right"]) and row["share"] == 1
    assert "not graded" not in told_asked(told) and "all alike" in told_asked(told)


def test_probabilities_that_a_server_does_not_tell_are_left_open():
    told = asked(("7", None), ("8", None))
    assert np.isnan(told.spread["probability"]).all()
    assert "not told" in asked_html(told) and "nan" not in asked_html(told)
    assert bar_trace(told.spread)["text"] == ["50%, right", "50%, wrong"]


def test_history_is_in_the_order_of_tokens_and_keeps_the_last_of_a_length():
    points = [asked(("8", 0.5), tokens=5), asked(("7", 0.5), tokens=2), asked(("7", 0.5), tokens=5)]
    frame = history(points)
    assert frame["tokens"].tolist() == [2, 5]
    assert frame["right"].tolist() == [True, True]
    assert frame["share_right"].tolist() == [1.0, 1.0]
    assert history([]).columns.tolist() == ["tokens", "answer", "share", "right", "share_right"]


def test_asking_along_stops_at_the_end_of_the_thinking():
    thought = Scripted(["a"] * 5, lambda length, count: [answer(str(length), 0.5)] * count)
    points = list(ask_along(thought, [0, 2, 4, 9, 12], 2, GRADED, "5"))
    assert [p.tokens for p in points] == [0, 2, 4, 5]
    assert [p.spread["verdict"].iloc[0] for p in points] == ["wrong"] * 3 + ["right"]
    assert "at the end (closed by itself)" in told_asked(points[-1])
    for bad in ([], [2, 1], [-1, 3], [2, 2]):
        with pytest.raises(ValueError, match="budgets must increase"):
            list(ask_along(thought, bad, 1, None, None))


def test_many_answers_share_the_last_bar():
    told = asked(*[(str(n), 0.5) for n in range(BARS + 4)])
    bars = bar_trace(told.spread)
    assert len(bars["x"]) == BARS + 1 == len(bar_axis(told.spread)["tickvals"])
    assert bars["customdata"][-1] == ["4 other answers"] and sum(bars["x"]) == pytest.approx(1)


def test_the_static_figure_draws_the_curve_and_the_columns():
    points = [
        asked(("8", 0.5), ("9", 0.5), ("7", 0.5), ("8", 0.5), tokens=2),
        asked(("7", 0.5), ("7", 0.5), ("7", 0.5), ("8", 0.5), tokens=4),
    ]
    lead, right, *columns = plot_asked(points, "<b>t</b> $x$").data
    assert (lead.x, lead.y) == ((2, 4), (0.5, 0.75))
    assert right.y == (0.25, 0.75)
    assert [tuple(c.y) for c in columns] == [(0.5, 0.75), (0.25, 0.25), (0.25, 0.0)]
    assert [c[0] for c in columns[0].customdata] == ["8", "7"]
    with pytest.raises(ValueError, match="not asked yet"):
        plot_asked([])


def test_hostile_answers_are_text_in_table_and_figure():
    bad = "<img src=x onerror=alert(1)>$x$\x1b[31m\u202e"
    told = asked((bad, 0.5), gold=bad)
    html = asked_html(told)
    figure = plot_asked([told], bad).to_json() + str(bar_trace(told.spread))
    for shown in (html, figure):
        assert "<img" not in shown and "\x1b" not in shown and "\u202e" not in shown
    assert "$x$" not in figure
