"""Answer now: buttons pressed and states read, on the embedded model and on scripted thoughts."""

import threading
import time

import pytest
from completions_server import serving
from made_thoughts import Scripted, Thinks, answer, scripted, state
from processes import until

from anytime_lab.engines.load import load_thinker
from anytime_lab.engines.thoughts import Thinker, ThinkingError
from anytime_lab.look.answer_view import ENDED, PAUSED, SHOWN, THINKING, AnswerNow
from anytime_lab.tasks.problems import load_task
from anytime_lab.verify.verifiers import ExactVerifier

HOSTILE = "<img src=x onerror=alert(1)></script>\\(x\\) $y$ \x1b[31m\u202e"
ROWS = [
    {"problem_id": "a", "prompt": "2 + 5?", "answer": "7"},
    {"problem_id": "b", "prompt": HOSTILE, "answer": HOSTILE},
]


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
    assert view.pane.text == alone.text
    assert f"{alone.length:,} tokens thought" in view.position.value
    assert len(view.asked) == 6 and view.asked[-1].tokens == alone.length


def test_what_is_answered_by_hand_is_what_the_figure_asks_at_that_token(opened, thinker, task):
    view = opened(thinker, task.problems, task.verifier, problem=2, seed=5, rate=100)
    with pytest.raises(ValueError, match="not asked yet"):
        view.figure()
    view.go.click()
    until(lambda: view.session.length > 10)
    view.go.click()
    until(lambda: view.asked)
    (asked,) = view.asked
    (alone,) = view.ask_along([asked.tokens])
    assert asked.summaries.drop(columns=["probability", "per_token"]).equals(
        alone.summaries.drop(columns=["probability", "per_token"])
    )
    assert asked.summaries["probability"].tolist() == pytest.approx(
        alone.summaries["probability"].tolist(), rel=1e-3
    )
    lead, right, bars = view.live.data
    assert tuple(lead.x) == tuple(right.x) == (asked.tokens,)
    assert list(bars.x) == asked.spread["share"].tolist()
    assert list(view.figure().data[0].y) == list(lead.y)
    assert f"After {asked.tokens} tokens" in view.spread.value
    assert view.pane.parts[-1][1].startswith(f"▼ {asked.tokens} tokens")


def test_a_server_is_as_good_as_a_model_in_here(opened, thinker, task):
    views = []
    with serving(thinker.engine, thinker.tokenizer) as (url, told):
        served = load_thinker(url, tokenizer="embedded", max_summary_tokens=24)
        for model in (thinker, served):
            view = opened(model, task.problems, task.verifier, problem=2, seed=5, rate=0)
            views.append(view)
            view.go.click()
            until(lambda view=view: state(view) == ENDED)
        assert views[0].pane.text == views[1].pane.text
        assert views[0].asked[-1].spread["answer"].equals(views[1].asked[-1].spread["answer"])
        assert len(told.streamed) == 1
    views[1].restart()  # the server is gone
    until(lambda: "no server answers" in views[1].notes.value)
    assert views[1].go.description == "Think on"
    served.engine.client.http.close()


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
        assert view.pane.text == alone.text


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
    assert "".join(pieces) == view.pane.text == view.session._thought.text
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
    assert "".join(text for kind, text in message["whole"] if not kind) == view.pane.text
    assert message["whole"][-1] == ("asked", "▼ 400 tokens: 7 (8 of 8)")
    view.pane.append("more")
    assert sent[-1] == {"at": message["next"], "part": ["", "more"]}


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
    assert "no problem was typed" in view.notes.value and view.session is None
    view.own.value = "3 + 4?"
    view.go.click()
    until(lambda: state(view) == ENDED)
    assert model.asked == [([{"role": "user", "content": "3 + 4? Box it."}], 0.5, 3)]
    assert view.asked[-1].spread["verdict"].tolist() == ["not graded"]
    assert view.live.data[1].x == ()
    view.own_gold.value = "7"
    view.go.click()
    until(lambda: state(view) == ENDED)
    assert view.asked[-1].spread["verdict"].tolist() == ["right"]


def test_another_problem_ends_the_thinking_and_clears_the_view(opened):
    model = scripted()
    view = opened(model, ROWS, ExactVerifier(), rate=20)
    view.go.click()
    until(lambda: view.session.length > 2)
    view.go.click()
    until(lambda: state(view) == PAUSED)
    view.problem.value = 1
    assert (state(view), view.pane.text, view.asked) == (None, "", [])
    assert view.spread.value.count("<table") == 0 and view.live.data[2].x == ()
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
    for text in (view.pane.text, str(view.pane.parts), str(view.problem.options)):
        assert "\x1b" not in text and "\u202e" not in text
    figure = str(view.live.data) + view.figure().to_json()
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
    assert view.go.tooltip and view.again.tooltip and "Space or Enter" in view.pane.label
    assert 'aria-live="polite"' in view.spread.value and 'aria-live="polite"' in view.notes.value
