"""Thoughts that follow a script, for what a session does with them."""

import math
import threading

from anytime_lab.engines.thoughts import Answer, ThinkingError
from anytime_lab.look.answer_view import WORDS
from anytime_lab.prompts import prompt_ids

FORCED = "...</think>\n\n**Final Answer**\n"


def answer(found, probability):
    """A summary that gives an answer (None: gives none), with a probability, of two tokens."""
    text = "" if found is None else f"\\boxed{{{found}}}"
    logprob = None if probability is None else math.log(probability)
    return Answer(FORCED, text, 2, logprob, True)


class Scripted:
    """Pieces in order; answers by a function of length and count.

    Attributes:
        fail_at: Lengths at which the next step fails once.
        gate: Where it is set to an event, each step waits for it.
        threads: Names of the threads that stepped.
    """

    def __init__(self, pieces, answers=None, fail_at=(), gate=None):
        self.pieces, self.fail_at, self.gate = list(pieces), set(fail_at), gate
        self.say = answers or (lambda _length, count: [answer("7", 0.5)] * count)
        self.text, self.length, self.end = "", 0, ""
        self.closed = threading.Event()
        self.steps = 0
        self.threads = set()

    def step(self):
        self.threads.add(threading.current_thread().name)
        if self.gate is not None:
            self.gate.wait(10)
        if self.closed.is_set():
            raise ThinkingError("this thought was closed; begin another.")
        if self.length in self.fail_at:
            self.fail_at.discard(self.length)
            raise ThinkingError("the server <b>broke</b> off.")
        self.steps += 1
        piece = self.pieces[self.length]
        self.text += piece
        self.length += 1
        if self.length == len(self.pieces):
            self.end = "closed"
        return piece

    def answers(self, count):
        return self.say(self.length, count)

    def close(self):
        self.closed.set()


class Thinks:
    """A thinker whose thoughts are made by a function."""

    name = "scripted <i>"

    def __init__(self, make):
        self.make, self.thoughts, self.asked = make, [], []

    def think(self, prompt, temperature=1.0, seed=0):
        self.asked.append((prompt, temperature, seed))
        self.thoughts.append(self.make())
        return self.thoughts[-1]


def scripted(**settings):
    """400 pieces."""
    return Thinks(lambda: Scripted(["a ", "b "] * 200, **settings))


def state(view):
    """Of a view's thinking; None until its button shows that state.

    The thinking's thread enters a state first and tells the view then.
    """
    now = view.session.state
    return now if view.go.description == WORDS[now][0] else None


def streamed(view):
    """The text that a view was told, without its marks."""
    return "".join(text for kind, text in view.pane.parts if not kind)


QUESTION = [{"role": "user", "content": "Reach 20 with 17, 11, 14."}]


def context_for(room, tokens, sampling, question=QUESTION):
    """A context in which so many tokens of thinking fit beside a question and its summaries."""
    prompt = prompt_ids(question, tokens.tokenizer, tokens.fmt)
    return room + len(prompt) + tokens.longest_forced + sampling.max_summary_tokens


def think_on(thought, tokens):
    for _ in range(tokens):
        thought.step()
    return thought
