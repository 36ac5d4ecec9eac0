"""The threads of answer now: pressed wildly, closed anywhere, and gone when the process ends."""

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

from made_thoughts import Scripted, scripted, state
from processes import until

from anytime_lab.look.answer_view import ANSWERING, ENDED, PAUSED, THINKING, AnswerNow, Session
from anytime_lab.verify.verifiers import ExactVerifier

ROWS = [{"problem_id": "a", "prompt": "2 + 5?", "answer": "7"}]
ENDS = """
import sys, threading, time
sys.path.insert(0, sys.argv[1])
from made_thoughts import Scripted
from processes import until
from anytime_lab.look.answer_view import PAUSED, Session
from anytime_lab.look.training_view import Training

class Deaf:
    def __getattr__(self, name):
        return lambda *_: None

def begin(**settings):
    return lambda: Scripted(["a "] * 10**6, **settings)

fast = Session(begin(), None, Deaf())
slow = Session(begin(), None, Deaf(), rate=1)
gate = threading.Event()
held = Session(begin(gate=gate), None, Deaf())
rests = Session(begin(), lambda thought: None, Deaf())
rests.ask()
until(lambda: rests.state == PAUSED)
follows = Training({"run": sys.argv[2]}, follow=True)
threading.Timer(0.5, gate.set).start()
for session in (fast, slow, held, rests):
    assert session._thread.is_alive() and not session._thread.daemon
assert follows._thread.is_alive() and not follows._thread.daemon
"""


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
    until(lambda: view.pane.text == last.text)
    assert view.pane.text == "".join(last.pieces[: last.length])
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
    assert view.pane.text == "new" and len(view.asked) == 1


def test_close_ends_the_thread_from_every_state(opened):
    for wait in (None, THINKING, PAUSED, ENDED):
        view = AnswerNow(scripted(), ROWS, rate=0 if wait == ENDED else 50)
        if wait is not None:
            view.go.click()
        if wait == PAUSED:
            view.go.click()
        until(lambda view=view, wait=wait: state(view) == wait)
        session = view.session
        view.close()
        view.close()
        assert session is None or not session._thread.is_alive()


def test_a_session_refuses_what_does_not_fit_its_state():
    class Deaf:
        def __getattr__(self, _name):
            return lambda *_args: None

    gate = threading.Event()
    answered = threading.Event()

    def question(thought):
        answered.wait(10)
        return None

    session = Session(lambda: Scripted("abc" * 9, gate=gate), question, Deaf())
    assert not session.go_on() and session.ask() and not session.ask()
    assert session.state == ANSWERING and not session.go_on()
    gate.set()
    answered.set()
    until(lambda: session.state == PAUSED)
    assert not session.ask() and session.go_on()
    assert session.close(5)
    assert not session.ask() and not session.go_on()


def test_a_process_that_ends_waits_for_its_threads_and_they_for_nothing(tmp_path):
    # a daemon thread would go on in native code, which then aborts the process
    run = subprocess.run(
        [sys.executable, "-c", ENDS, Path(__file__).parents[1], tmp_path],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
