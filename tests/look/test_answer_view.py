"""Answer now: the spread worked by hand, its figure, buttons pressed, and threads that end."""

import copy
import random
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from completions_server import serving
from made_thoughts import Scripted, Thinks, answer, context_for, scripted, state, streamed
from processes import until

from anytime_lab.engines.load import load_thinker
from anytime_lab.engines.thoughts import Thinker, ThinkingError
from anytime_lab.look.answer_view import (
    ANSWERING,
    ENDED,
    NEW,
    PAUSED,
    SHOWN,
    THINKING,
    AnswerNow,
    ask,
    asked_html,
    plot_asked,
    told_asked,
)
from anytime_lab.tasks.problems import load_task
from anytime_lab.verify.verifiers import ExactVerifier

HOSTILE = "<img src=x onerror=alert(1)></script>\\(x\\) $y$ \x1b[31m\u202e"
ROWS = [
    {"problem_id": "a", "prompt": "2 + 5?", "answer": "7"},
    {"problem_id": "b", "prompt": HOSTILE, "answer": HOSTILE},
]


GRADED = ExactVerifier()
ENDS = """
import sys, threading
sys.path.insert(0, sys.argv[1])
from made_thoughts import Scripted, Thinks
from processes import until
from anytime_lab.look.answer_view import PAUSED, AnswerNow
from anytime_lab.look.training_view import Training

def thinking(rate=0, **settings):
    thinks = Thinks(lambda: Scripted(["a "] * 10**6, **settings))
    view = AnswerNow(thinks, [{"prompt": "?"}], rate=rate)
    view.go.click()
    return view.session

gate = threading.Event()
fast, slow, held, rests = thinking(), thinking(rate=1), thinking(gate=gate), thinking()
rests.ask()
until(lambda: rests.state == PAUSED and not rests._thread.is_alive())
follows = Training({"run": sys.argv[2]}, follow=True)
threading.Timer(0.5, gate.set).start()
for session in (fast, slow, held):
    assert session._thread.is_alive() and not session._thread.daemon
assert follows._thread.is_alive() and not follows._thread.daemon
"""


# --- data and figure ---------------------------------------------------------------------------


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
    lead, right, bars = plot_asked([told]).data
    assert (lead.y, right.y, bars.y) == ((1,), (), (1,)) and "graded" not in lead.customdata[0]
    assert "not graded" not in told_asked(told) and "all alike" in told_asked(told)


def test_probabilities_that_a_server_does_not_tell_are_left_open():
    told = asked(("7", None), ("8", None))
    assert np.isnan(told.spread["probability"]).all()
    assert "not told" in asked_html(told) and "nan" not in asked_html(told)
    bars = plot_asked([told]).data[2]
    assert bars.customdata == ("7: 50% of summaries, right", "8: 50% of summaries, wrong")


def test_points_are_in_the_order_of_tokens_and_the_last_of_a_length_counts():
    points = [asked(("8", 0.5), tokens=5), asked(("7", 0.5), tokens=2), asked(("7", 0.5), tokens=5)]
    lead, right, bars = plot_asked(points).data
    assert lead.x == right.x == (2, 5) and right.y == (1.0, 1.0)
    assert lead.customdata == tuple(
        f"{tokens} tokens: 7: 100% of summaries, right, p 50%" for tokens in (2, 5)
    )
    assert bars.x == ("2", "5")


def test_the_figure_draws_the_curve_and_the_columns():
    points = [
        asked(("8", 0.5), ("9", 0.5), ("7", 0.5), ("8", 0.5), tokens=2),
        asked(("7", 0.5), ("7", 0.5), ("7", 0.5), ("8", 0.5), tokens=4),
    ]
    lead, right, bars = plot_asked(points, "<b>t</b> $x$").data
    assert (lead.x, lead.y) == ((2, 4), (0.5, 0.75))
    assert right.y == (0.25, 0.75)
    assert bars.x == ("2", "4", "2", "2", "4")  # of those right first, so that they stand lowest
    assert bars.y == (0.25, 0.75, 0.5, 0.25, 0.25)
    assert bars.text == ("7", "7", "8", "9", "8")
    assert bars.marker.pattern.shape == ("", "", "/", "/", "/")
    with pytest.raises(ValueError, match="not asked yet"):
        plot_asked([])


def test_hostile_answers_are_text_in_table_and_figure():
    bad = "<img src=x onerror=alert(1)>$x$\x1b[31m\u202e"
    told = asked((bad, 0.5), gold=bad)
    html = asked_html(told)
    figure = plot_asked([told], bad).to_json()
    for shown in (html, figure):
        assert "<img" not in shown and "\x1b" not in shown and "\u202e" not in shown
    assert "$x$" not in figure


@pytest.fixture(scope="module")
def thinker():
    return load_thinker("embedded", max_summary_tokens=24)


@pytest.fixture(scope="module")
def task():
    return load_task("countdown", split="test", num_problems=6)


# --- with the embedded model ---------------------------------------------------------------------


@pytest.mark.parametrize(("problem", "temperature"), [(5, 0.0), (2, 1.0)])
def test_a_thinking_stopped_many_times_is_the_one_left_alone(
    opened, thinker, task, problem, temperature
):
    view = opened(
        thinker, task.problems, task.verifier,
        problem=problem, temperature=temperature, seed=5, rate=50,
    )  # fmt: skip
    alone = thinker.think(task.problems[problem]["prompt"], temperature, seed=5)
    while not alone.end:
        alone.step()
    assert alone.length > 90  # long enough for all its stops
    view.go.click()
    for length in (0, 3, 20, 21, 60):
        until(lambda length=length: view.session.length >= length)
        view.go.click()
        until(lambda: state(view) == PAUSED)
        assert view.go.description == "Think on"
        view.go.click()
    view.rate.value = 0  # nobody reads the rest along
    until(lambda: view.go.description == "Start again")
    assert streamed(view) == alone.text
    assert f"{alone.length:,} tokens thought" in view.position.value
    assert len(view.asked) == 6 and view.asked[-1].tokens == alone.length


def test_what_is_answered_by_hand_is_what_is_asked_along_at_that_token(opened, thinker, task):
    view = opened(thinker, task.problems, task.verifier, problem=2, seed=5, rate=100)
    with pytest.raises(ValueError, match="not asked yet"):
        view.figure()
    view.go.click()
    until(lambda: view.session.length > 10)
    view.go.click()
    until(lambda: view.asked)
    (asked,) = view.asked
    thought = thinker.think(task.problems[2]["prompt"], 1.0, 5)
    gold = task.problems[2]["answer"]
    while thought.length < asked.tokens:
        thought.step()
    alone = ask(thought, 8, task.verifier, gold)
    assert asked.summaries.drop(columns=["probability", "per_token"]).equals(
        alone.summaries.drop(columns=["probability", "per_token"])
    )
    assert asked.summaries["probability"].tolist() == pytest.approx(
        alone.summaries["probability"].tolist(), rel=1e-3
    )
    lead, right, *bars = view.live.figure.data
    assert tuple(lead.x) == tuple(right.x) == (asked.tokens,)
    assert sorted(y for bar in bars for y in bar.y) == sorted(asked.spread["share"])
    assert list(view.figure().data[0].y) == list(lead.y)
    assert f"After {asked.tokens} tokens" in view.spread.value
    assert view.pane.parts[-1][1].startswith(f"▼ {asked.tokens} tokens")


def test_a_server_is_as_good_as_a_model_in_here(opened, thinker, task):
    views = []
    with serving(thinker.engine.model, thinker.engine.tokens) as (url, _):
        served = load_thinker(url, tokenizer="embedded", max_summary_tokens=24)
        prompt = task.problems[2]["prompt"]
        for model in (thinker, served):
            engine = copy.copy(model.engine)
            engine.context_length = context_for(40, engine.tokens, model.sampling, prompt)
            model = replace(model, engine=engine)
            view = opened(model, task.problems, task.verifier, problem=2, temperature=0, rate=0)
            views.append(view)
            view.go.click()
            until(lambda view=view: state(view) == ENDED)
        assert streamed(views[0]) == streamed(views[1])
        assert views[0].asked[-1].spread["answer"].equals(views[1].asked[-1].spread["answer"])
    views[1].restart()  # the server is gone
    until(lambda: "no server answers" in views[1].notes.value)
    assert views[1].go.description == "Think on"
    served.engine.http.close()


def test_a_full_context_and_a_model_that_cannot_are_sentences(opened, thinker, task):
    long = Thinker(thinker.engine, type(thinker.sampling)(max_summary_tokens=1010))
    view = opened(long, task.problems, task.verifier)
    view.go.click()
    until(lambda: "leave none to think" in view.notes.value)
    until(lambda: view.go.description == "Start again")
    assert "Traceback" not in view.notes.value


def test_two_views_on_one_model_do_not_disturb_each_other(opened, thinker, task):
    views = [
        opened(thinker, task.problems, task.verifier, problem=2, seed=seed, rate=0)
        for seed in (5, 6)
    ]
    for view in views:
        view.go.click()
    until(lambda: all(state(view) == ENDED for view in views))
    for view, seed in zip(views, (5, 6), strict=True):
        alone = thinker.think(task.problems[2]["prompt"], 1.0, seed)
        while not alone.end:
            alone.step()
        assert streamed(view) == alone.text


# --- streaming -----------------------------------------------------------------------------------


def test_text_is_sent_once_and_in_few_messages(opened, monkeypatch):
    view = opened(scripted(), ROWS, ExactVerifier(), rate=100)
    sent = []
    monkeypatch.setattr(view.pane, "send", lambda content: sent.append(content))
    view.go.click()
    until(lambda: view.session.length >= 60)
    view.go.click()
    until(lambda: state(view) == PAUSED)
    pieces = [m["part"][1] for m in sent if "part" in m and not m["part"][0]]
    assert "".join(pieces) == streamed(view) == view.session._thought.text
    assert len(pieces) <= 0.5 * view.session.length  # 100 tokens a second, 10 messages
    first, *rest = [m["at"] for m in sent if "at" in m]
    assert rest == list(range(first + 1, first + len(pieces) + 1))  # and the mark of the question


def test_the_rate_holds_and_an_ask_does_not_wait_for_the_next_token(opened, monkeypatch):
    monkeypatch.setattr("anytime_lab.look.answer_view.RATES", (0, 0.05))
    view = opened(scripted(), ROWS, rate=0.05)  # the second token is due after 20 s
    started = time.monotonic()
    view.go.click()
    until(lambda: view.session.length == 1)  # the first comes at once
    time.sleep(0.3)
    view.go.click()
    until(lambda: state(view) == PAUSED)
    assert time.monotonic() - started < 10 and view.asked[0].tokens == 1
    view.go.click()
    view.rate.value = 0  # counts at once, in the middle of a wait
    until(lambda: state(view) == ENDED)
    assert time.monotonic() - started < 19


def test_the_kernel_stays_free_while_it_thinks(opened):
    gate = threading.Event()
    view = opened(scripted(gate=gate), ROWS)
    started = time.monotonic()
    view.go.click()
    view.go.click()
    view.restart()
    assert time.monotonic() - started < 5  # no step was waited for
    gate.set()


def test_a_page_that_opens_late_gets_all_text_and_its_marks(opened, monkeypatch):
    view = opened(scripted(), ROWS, rate=0)  # without a verifier: nothing is graded
    view.go.click()
    until(lambda: state(view) == ENDED)
    sent = []
    monkeypatch.setattr(view.pane, "send", lambda content: sent.append(content))
    view.pane._handle_custom_msg({"want": "whole"}, [])
    (message,) = sent
    assert "".join(text for kind, text in message["whole"] if not kind) == streamed(view)
    assert message["whole"][-1] == ("asked", "▼ 400 tokens: 7 (8 of 8)")
    view.pane.append("more")
    assert sent[-1] == {"at": message["next"], "part": ("", "more")}


def test_the_page_holds_the_end_of_a_text_of_megabytes(opened, monkeypatch):
    view = opened(scripted(), ROWS)
    sent = []
    monkeypatch.setattr(view.pane, "send", lambda content: sent.append(content))
    view.pane.append("x" * 3_000_000 + "end")
    view.pane._handle_custom_msg({"want": "whole"}, [])
    assert all(len(str(m)) < SHOWN + 200 for m in sent) and "end" in str(sent[-1])


def test_keys_in_the_text_do_what_the_button_does(opened):
    view = opened(scripted(), ROWS, rate=20)
    for wanted in (THINKING, PAUSED, THINKING, PAUSED):
        view.pane._handle_custom_msg({"press": " "}, [])
        until(lambda wanted=wanted: state(view) == wanted)


# --- problems ------------------------------------------------------------------------------------


def test_a_typed_problem_is_thought_about_and_graded_if_its_answer_is_known(opened):
    model = scripted()
    view = opened(model, ROWS, ExactVerifier(), rate=0, suffix=" Box it.", seed=3, temperature=0.5)
    assert view.own.layout.display == "none"
    view.problem.value = -1
    assert view.own.layout.display is None
    view.go.click()
    until(lambda: state(view) == ENDED)
    assert "no problem was typed" in view.notes.value and not streamed(view)
    view.own.value = "3 + 4?"
    view.go.click()
    until(lambda: state(view) == ENDED)
    assert model.asked == [([{"role": "user", "content": "3 + 4? Box it."}], 0.5, 3)]
    assert view.asked[-1].spread["verdict"].tolist() == ["not graded"]
    assert view.live.figure.data[1].x == ()
    view.own_gold.value = "7"
    view.go.click()
    until(lambda: state(view) == ENDED)
    assert view.asked[-1].spread["verdict"].tolist() == ["right"]


def test_an_example_is_there_before_the_first_click_and_goes_with_it(opened):
    model = scripted()
    view = opened(model, ROWS, ExactVerifier(), rate=0, ask_at=[0, 3, 9])
    assert view.go.description == "Start" and model.thoughts[0].closed.is_set()
    assert view.live.figure.data[0].x == (0, 3, 9) and "An example" in view.notes.value
    assert streamed(view) == "a b a b a b a b a " and len(view.asked) == 3
    assert [text[:4] for kind, text in view.pane.parts if kind] == ["▼ 0 ", "▼ 3 ", "▼ 9 "]
    view.go.click()
    until(lambda: state(view) == ENDED)
    assert view.live.figure.data[0].x == (400,) and "An example" not in view.notes.value


def test_an_example_is_asked_at_its_end_for_the_last_time(opened):
    def made():
        return Scripted(["a"] * 5, lambda length, count: [answer(str(length), 0.5)] * count)

    view = opened(Thinks(made), [{"prompt": "?", "answer": "5"}], GRADED, ask_at=[0, 9, 2, 4, 12])
    assert [a.tokens for a in view.asked] == [0, 2, 4, 5]
    assert [a.spread["verdict"].iloc[0] for a in view.asked] == ["wrong"] * 3 + ["right"]
    assert "at the end (closed by itself)" in view.spread.value


def test_an_example_that_cannot_be_asked_is_a_sentence(opened):
    def no():
        raise ThinkingError("there is no model.")

    view = opened(Thinks(no), ROWS, ask_at=[0, 3])
    assert "There is no example: there is no model." in view.notes.value


def test_the_right_answer_is_folded_away_until_it_is_asked_for(opened):
    view = opened(scripted(), ROWS)
    before, after = view.question.value.split("<details><summary>Right answer</summary>")
    assert "7" not in before and "<p" in after and ">7<" in after


def test_another_problem_ends_the_thinking_and_clears_the_view(opened):
    model = scripted()
    view = opened(model, ROWS, ExactVerifier(), rate=20)
    view.go.click()
    until(lambda: view.session.length > 2)
    view.go.click()
    until(lambda: state(view) == PAUSED)
    view.problem.value = 1
    assert (state(view), streamed(view), view.asked) == (NEW, "", [])
    assert view.spread.value.count("<table") == 0 and view.live.layout.display == "none"
    until(lambda: model.thoughts[0].closed.is_set())
    assert view.go.description == "Start"


def test_without_problems_one_is_typed(opened):
    view = opened(scripted())
    assert view.problem.value == -1 and view.own.layout.display is None


def test_text_of_models_and_problems_cannot_act(opened):
    model = Thinks(lambda: Scripted([HOSTILE], lambda _l, count: [answer(HOSTILE, 0.5)] * count))
    view = opened(model, ROWS, ExactVerifier(), problem=1, rate=0)
    view.go.click()
    until(lambda: state(view) == ENDED)
    parts = (view.question, view.spread, view.notes, view.position)
    shown = "".join(part.value for part in parts)
    assert shown.count("&lt;img") >= 2
    for bad in ("<img", "<script", "</script", "\x1b", "\u202e"):
        assert bad not in shown
    assert all("mathjax_ignore" in part.value for part in parts)
    for text in (streamed(view), str(view.pane.parts), str(view.problem.options)):
        assert "\x1b" not in text and "\u202e" not in text
    figure = view.live.figure.to_json() + view.figure().to_json()
    assert "<img" not in figure and "$y$" not in figure and "<i>" not in view.figure().to_json()


# --- errors --------------------------------------------------------------------------------------


def test_a_break_is_told_and_thinking_on_goes_on_there(opened):
    model = scripted(fail_at=[50])
    view = opened(model, ROWS, ExactVerifier(), rate=0)
    view.go.click()
    until(lambda: "&lt;b&gt;broke" in view.notes.value)
    assert state(view) == PAUSED and view.session.length == 50
    view.go.click()
    until(lambda: state(view) == ENDED)
    assert "broke" not in view.notes.value
    assert model.thoughts[0].steps == 400


def test_a_thought_that_cannot_begin_is_told(opened):
    def no():
        raise ThinkingError("there is no model.")

    view = opened(Thinks(no), ROWS)
    for _ in range(2):
        view.go.click()
        until(lambda: "there is no model." in view.notes.value)
        until(lambda: view.go.description == "Start again")


def test_an_unexpected_error_is_a_sentence_without_its_traceback(opened):
    def no(_length, _count):
        raise KeyError("x\nsecond line")

    view = opened(scripted(answers=no), ROWS, rate=0)
    view.go.click()
    until(lambda: "The thinking stopped (KeyError" in view.notes.value)
    assert "Traceback" not in view.notes.value


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"problem": 2}, "there are 2"),
        ({"rate": 3}, "rate is 3"),
        ({"num_summaries": 0}, "num_summaries is 0"),
        ({"temperature": 2.5}, "temperature is 2.5"),
    ],
)
def test_bad_settings_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        AnswerNow(scripted(), ROWS, **settings)


# --- accessibility -------------------------------------------------------------------------------


def test_every_control_has_a_label(opened):
    view = opened(scripted(), ROWS)
    controls = [
        view.problem, view.own, view.own_gold, view.count, view.temperature, view.seed, view.rate,
        view.go, view.again,
    ]  # fmt: skip
    assert all(control.description for control in controls)
    assert view.go.tooltip and view.again.tooltip
    assert 'aria-live="polite"' in view.spread.value and 'aria-live="polite"' in view.notes.value


# --- threads ----------------------------------------------------------------------------------


def test_buttons_pressed_wildly_leave_the_thinking_whole(opened):
    model = scripted()
    view = opened(model, ROWS, ExactVerifier(), rate=0, num_summaries=2)
    rng = random.Random(0)
    view.go.click()
    for _ in range(100):
        rng.choice([view.press, view.press, view.press, view.restart])()
        time.sleep(rng.random() * 0.004)
    view.restart()
    until(lambda: view.session.ask() or state(view) != THINKING)
    until(lambda: state(view) in (PAUSED, ENDED))
    last = model.thoughts[-1]
    until(lambda: streamed(view) == last.text)
    assert streamed(view) == "".join(last.pieces[: last.length])
    assert view.asked[-1].tokens == last.length == last.steps
    # every thought before was given up, each stepped by the one thread that was its own
    until(lambda: all(t.closed.is_set() for t in model.thoughts[:-1]))
    until(lambda: sum(t.name == "thinking" for t in threading.enumerate()) <= 1)


def test_an_old_thinking_tells_nothing_more(opened):
    gate = threading.Event()
    model = scripted(gate=gate)
    view = opened(model, ROWS, rate=0)
    view.go.click()
    until(lambda: model.thoughts)
    old = view.session
    model.make = lambda: Scripted(["new"])
    view.restart()
    until(lambda: state(view) == ENDED)
    gate.set()
    until(lambda: not old._thread.is_alive())
    assert streamed(view) == "new" and len(view.asked) == 1


def test_close_ends_the_thread_from_every_state(opened):
    for wait in (NEW, THINKING, PAUSED, ENDED):
        view = AnswerNow(scripted(), ROWS, rate=0 if wait == ENDED else 50)
        if wait != NEW:
            view.go.click()
        if wait == PAUSED:
            view.go.click()
        until(lambda view=view, wait=wait: state(view) == wait)
        session = view.session
        view.close()
        view.close()
        assert not session._thread.is_alive()


def test_a_session_refuses_what_does_not_fit_its_state(opened):
    gate, answered = threading.Event(), threading.Event()

    def answers(_length, count):
        answered.wait(10)
        return [answer("7", 0.5)] * count

    view = opened(Thinks(lambda: Scripted("abc" * 9, answers, gate=gate)), ROWS)
    session = view.session
    assert not session.ask() and session.go_on()
    assert not session.go_on() and session.ask() and not session.ask()
    assert session.state == ANSWERING and not session.go_on()
    gate.set()
    answered.set()
    until(lambda: session.state == PAUSED)
    assert not session.ask() and session.go_on()
    session.close(5)
    assert not session._thread.is_alive()
    assert not session.ask() and not session.go_on()


def test_a_process_that_ends_waits_for_its_threads_and_they_for_nothing(tmp_path):
    # a daemon thread would go on in native code, which then aborts the process
    run = subprocess.run(
        [sys.executable, "-c", ENDS, Path(__file__).parents[1], tmp_path],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
