"""View: a model thinks, and is stopped at any token to show its answer now."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import anywidget
import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import traitlets
from plotly.subplots import make_subplots

from anytime_lab.engines.thoughts import Thinker, ThinkingError, Thought
from anytime_lab.look.figures import told_line
from anytime_lab.look.live import LiveFigure, Text, button, described, esm, row
from anytime_lab.look.style import COLOURS, RunStyle, base, faded, short_text
from anytime_lab.look.view import ENDS, View, summaries_html, told_answer
from anytime_lab.page import escaped, folded, paragraph, plain, region, short, table
from anytime_lab.verify.verifiers import Verifier, find_answer

NO_GOLD = "not graded"


@dataclass(frozen=True)
class Asked:
    """One question put to a thinking.

    Attributes:
        tokens: How long the thinking was.
        end: How it had ended, if it had.
        summaries: One row for each, numbered from 1: answer (None: none was found), verdict,
            reason, text, tokens, end, logprob (nats; NaN: not told), probability, per_token (the
            geometric mean over its tokens).
    """

    tokens: int
    end: str
    summaries: pd.DataFrame

    @cached_property
    def spread(self) -> pd.DataFrame:
        """The distinct answers, the most frequent first (of those tied, the more probable).

        Columns answer (None: no answer), count, share, probability and per_token (means over its
        summaries), verdict; and tokens.
        """
        how = {"answer": "first", "probability": "mean", "per_token": "mean", "verdict": "first"}
        groups = self.summaries.groupby("answer", dropna=False, sort=False)
        frame = groups.agg(how).assign(count=groups.size(), tokens=self.tokens)
        frame["share"] = frame["count"] / len(self.summaries)
        by = ["count", "probability"]
        return frame.sort_values(by, ascending=False, kind="stable", ignore_index=True)

    @property
    def share_right(self) -> float:
        """The share of right summaries; NaN where nothing is graded."""
        return self.summaries["verdict"].map({"right": 1.0, "wrong": 0.0}).mean()


def ask(thought: Thought, count: int, verifier: Verifier | None, gold: Any = None) -> Asked:
    """Ask a thinking as it stands, and grade what it says.

    Args:
        thought: Goes on afterwards as if it had not been asked.
        count: Summaries.
        verifier: Finds the answers and grades them; None finds mathematical ones.
        gold: The right answer; None where it is not known.
    """
    answers = thought.answers(count)
    texts = [thought.text + a.forced + a.text for a in answers]
    frame = pd.DataFrame(answers, range(1, count + 1)).astype({"logprob": float})
    if verifier is not None and gold is not None:
        grades = verifier.grade(texts, [gold] * len(texts))
        found, frame["reason"] = [g.answer for g in grades], [g.reason for g in grades]
        frame["verdict"] = [
            "abstained" if g.score is None else "right" if g.score >= 1 else "wrong" for g in grades
        ]
    else:
        found = [getattr(verifier, "find", find_answer)(text) for text in texts]
        frame = frame.assign(verdict=NO_GOLD, reason="")
    frame["answer"] = pd.Series(found, frame.index, dtype=object)  # in which None stays None
    frame["end"] = np.where(frame["finished"], "ended", "cut off")
    frame["probability"] = np.exp(frame["logprob"])
    frame["per_token"] = np.exp(frame["logprob"] / frame["tokens"].clip(lower=1))
    return Asked(thought.length, thought.end, frame)


# --- in words ------------------------------------------------------------------------------------


def told_probability(value: float) -> str:
    """A probability, precise where it is small."""
    if math.isnan(value):
        return "not told"
    return f"{value:.0%}" if value >= 0.1 else f"{value:.2g}"


def told_verdict(verdict: str) -> str:
    """A verdict, to be appended; nothing where none was given."""
    return "" if verdict == NO_GOLD else f", {verdict}"


def told_asked(asked: Asked) -> str:
    """The leading answer of a question, in a sentence; not escaped."""
    lead, others = asked.spread.iloc[0], len(asked.spread) - 1
    ended = f", at the end ({ENDS.get(asked.end, asked.end)})" if asked.end else ""
    rest = "all alike" if not others else f"{others} other answer{'' if others == 1 else 's'}"
    return (
        f"After {asked.tokens:,} tokens{ended}: {told_answer(lead['answer'])}"
        f"{told_verdict(lead['verdict'])}; {lead['count']} of {len(asked.summaries)} summaries, "
        f"{rest}; probability of such a summary {told_probability(lead['probability'])}."
    )


def asked_html(asked: Asked) -> str:
    """The spread of one question, and its summaries one by one."""
    header = ["answer", "summaries", "mean probability", "per token", "verdict"]
    rows = []
    for line in asked.spread.itertuples():
        chances = told_probability(line.probability), told_probability(line.per_token)
        count = f"{line.count} of {len(asked.summaries)}"
        rows.append((told_answer(line.answer, 80), count, *chances, line.verdict))
    return (
        paragraph(told_asked(asked))
        + table(header, rows, f"Answers after {asked.tokens:,} tokens", "text")
        + summaries_html(asked.summaries, "Its summaries")
    )


OTHER = (COLOURS[0], "circle", "")
VERDICTS = {  # colour, mark and hatching
    "right": (COLOURS[2], "circle", ""),
    "wrong": (COLOURS[1], "x", "/"),
}
FILL = 0.3  # opacity of a bar, on which the page's own text is read, light and dark


def plot_asked(asked: Sequence[Asked], title: str = "") -> go.Figure:
    """One thinking's own anytime curve, and the spread of its answers at each point.

    Args:
        asked: Questions put to the thinking. Where one length was asked at twice, the last counts.
    """
    if not asked:
        raise ValueError("the thinking was not asked yet; there is nothing to draw.")
    panels = ["Summaries that agree, and that are right", "Spread of the answers"]
    figure = make_subplots(
        1, 2, column_widths=[0.42, 0.58], horizontal_spacing=0.07, subplot_titles=panels
    )
    points = {a.tokens: a for a in sorted(asked, key=lambda a: a.tokens)}
    spread, told, inside = pd.concat(a.spread for a in points.values()), [], []
    for line in spread.itertuples():
        name, chance = told_answer(line.answer), told_probability(line.probability)
        words = f"{line.share:.0%} of summaries{told_verdict(line.verdict)}, p {chance}"
        told.append(f"{short_text(name, 60)}: {words.removesuffix(', p not told')}")
        fits = line.share >= 0.1 and len(points) <= 8  # into its column
        inside.append(short_text(name, 28) if fits else "")
    spread = spread.assign(told=told, inside=inside, at=spread["tokens"].map("{:,}".format))
    spread[["colour", "symbol", "pattern"]] = [VERDICTS.get(v, OTHER) for v in spread["verdict"]]
    bars = spread.sort_values("verdict", kind="stable").to_dict("list")
    lead = spread.loc[[0]].to_dict("list")
    said = [f"{at} tokens: {told}" for at, told in zip(lead["at"], lead["told"], strict=True)]
    line, ring = RunStyle(COLOURS[0], "solid", ""), RunStyle(COLOURS[2], "dash", "diamond-open")
    marks = {"size": 11, "color": lead["colour"], "symbol": lead["symbol"]}
    graded = {n: a.share_right for n, a in points.items() if not math.isnan(a.share_right)}
    right = "%{x:,d} tokens: %{y:.0%} of summaries right"
    told = told_line(lead["tokens"], lead["share"], said, "leading answer", line, marker=marks)
    figure.add_trace(told, 1, 1)
    figure.add_trace(told_line(graded, graded.values(), right, "right summaries", ring), 1, 1)
    figure.add_bar(
        x=bars["at"],
        y=bars["share"],
        name="answers",
        showlegend=False,
        customdata=bars["told"],
        hovertemplate="%{x} tokens: %{customdata}<extra></extra>",
        text=bars["inside"],
        textposition="inside",
        textangle=0,
        insidetextanchor="middle",
        marker_color=[faded(colour, FILL) for colour in bars["colour"]],
        marker_line={"color": bars["colour"], "width": 1.5},
        marker_pattern={"shape": bars["pattern"], "fgcolor": bars["colour"], "solidity": 0.05},
        row=1,
        col=2,
    )
    base(figure, 364 if title else 320, title, barmode="stack", bargap=0.12, legend={"y": 1.1})
    figure.update_layout(margin={"t": 108 if title else 64})
    figure.update_layout(uniformtext={"minsize": 9, "mode": "hide"})
    figure.update_xaxes(title="Thinking (tokens)", title_standoff=4, zeroline=False)
    figure.update_xaxes(tickformat=",d", rangemode="tozero", col=1)
    figure.update_xaxes(type="category", categoryarray=[f"{n:,}" for n in points], col=2)
    return figure.update_yaxes(tickformat=".0%", range=[-0.03, 1.05])


SHOWN = 40_000  # characters at the end of the text that the page holds


class StreamPane(anywidget.AnyWidget):
    """Text that grows, with marks in it; Space and Enter in it are told.

    Attributes:
        parts: (kind, text) of all that is shown: kind `` is text, any other a mark of that class.
    """

    _esm = esm("stream.js")
    shown = traitlets.Int(SHOWN).tag(sync=True)

    def __init__(self, pressed: Callable[[], None]) -> None:
        super().__init__()
        self.parts: list[tuple[str, str]] = []
        self._pressed = pressed
        self.on_msg(self._heard)

    def append(self, text: str, kind: str = "") -> None:
        """Adds text at the end; with classes of the page's style as its kind, a mark."""
        if text:
            self.parts.append((kind, plain(text[-SHOWN:])))
            self.send({"at": len(self.parts) - 1, "part": self.parts[-1]})

    def clear(self) -> None:
        """Begins anew."""
        self.parts = []
        self._send_whole()

    def _send_whole(self) -> None:
        whole, left = [], SHOWN
        for kind, piece in reversed(self.parts):
            if left > 0:
                whole.insert(0, (kind, piece[-left:]))
                left -= len(piece)
        self.send({"whole": whole, "next": len(self.parts)})

    def _heard(self, _widget: object, content: dict, _buffers: object) -> None:
        if content.get("want") == "whole":
            self._send_whole()
        elif "press" in content:
            self._pressed()


NEW, CLOSED = "new", "closed"
THINKING, ANSWERING, PAUSED, ENDED = "thinking", "answering", "paused", "ended"
PERIOD = 0.1  # seconds between two pieces of text
GLANCE = 0.02  # seconds after which a thinking that waits looks for what is wanted of it


class Session:
    """A thinking of a view: it thinks and answers in a thread of its own, and rests in between.

    An interpreter that exits waits for the thread, which then ends by itself after the step that
    it is in: a daemon thread would be torn out of a forward pass, and abort the process.

    Attributes:
        state: NEW, THINKING, ANSWERING, PAUSED (it can go on), ENDED or CLOSED.
        length: Tokens thought, as last told.
    """

    def __init__(self, view: AnswerNow) -> None:
        self.view, self.state, self.length = view, NEW, 0
        self._turning, self._thread = threading.Lock(), threading.Thread()
        self._thought: Thought | None = None
        self._piece, self._told_at, self._stepped_at = "", 0.0, -math.inf

    def ask(self) -> bool:
        """Stop at this token and answer. False if it is not thinking."""
        return self._turn(ANSWERING, THINKING)

    def go_on(self) -> bool:
        """Begin, or think on. False if it is not at rest, or at its end."""
        if not self._turn(THINKING, NEW, PAUSED):
            return False
        self._thread = threading.Thread(target=self._run, name="thinking", daemon=False)
        self._thread.start()
        return True

    def close(self, timeout: float = 0.0) -> None:
        """End it wherever it is; wait so many seconds for its thread."""
        self._turn(CLOSED)
        if self._thought is not None:
            self._thought.close()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _turn(self, state: str, *of: str) -> bool:
        """Enter a state, out of one of these (of any but CLOSED where none is named)."""
        with self._turning:
            may = self.state in of if of else self.state != CLOSED
            if may:
                self.state = state
        return may

    def _run(self) -> None:
        """Think until told to answer, or to the end; answer; rest."""
        try:
            if self._thought is None:
                self._thought = self.view.think()
            while self.state == THINKING and not self._thought.end and not self._over():
                self._step()
            if self._over():
                return self._thought.close()
            self._settle(ANSWERING)
            asked = self.view.ask(self._thought)
            self._settle(ENDED if self._thought.end else PAUSED, asked)
        except Exception as error:  # told in a sentence; the thought may go on later
            self._settle(ENDED if self._thought is None else PAUSED, wrong=sentence(error))

    def _over(self) -> bool:
        """Whether it was closed, or the interpreter is about to end."""
        return self.state == CLOSED or not threading.main_thread().is_alive()

    def _step(self) -> None:
        """Think one token, or wait some of the time until it is due."""
        now, rate = time.monotonic(), self.view.rate.value
        if now >= self._told_at + PERIOD:
            self._say()
        early = self._stepped_at + (1 / rate if rate else 0.0) - now
        if early > 0:
            return time.sleep(min(early, GLANCE))
        self._stepped_at = now  # one that was at rest, or is slower, has nothing to catch up
        self._piece += self._thought.step()

    def _settle(self, state: str, asked: Asked | None = None, wrong: str = "") -> None:
        """Tells all there is; then it is in this state, and tells that."""
        self._say(asked)
        self._turn(state)
        self._say(wrong=wrong)

    def _say(self, asked: Asked | None = None, wrong: str = "") -> None:
        if not self._over():
            piece, self._piece = self._piece, ""
            self.length = 0 if self._thought is None else self._thought.length
            self._told_at = time.monotonic()
            self.view.hear(self, piece, asked, wrong)


def sentence(error: Exception) -> str:
    """What went wrong, in words: our own errors have theirs."""
    said = str(error).strip()
    if isinstance(error, (ThinkingError, ValueError)) and said:
        return said
    first = said.splitlines()[0] if said else "no more is known"
    return f"The thinking stopped ({type(error).__name__}: {first})."


OWN = -1  # the problem that the reader types
LISTED = 1_000  # problems in the list
QUESTION = 6_000  # characters
RATES = (1, 2, 5, 10, 20, 50, 100, 0)  # tokens a second; 0: as fast as it can
MOST = 256  # summaries
WORDS = {
    NEW: ("Start", "not started"),
    THINKING: ("Answer now", "thinking"),
    ANSWERING: ("Answering…", "answering"),
    PAUSED: ("Think on", "at rest"),
    ENDED: ("Start again", "ended"),
    CLOSED: ("Start again", "closed"),
}
CLOSING = 5.0  # seconds that close() waits for a forward pass


class AnswerNow(View):
    """One thinking, streamed; stopped for its answers and thought on as often as one likes.

    Args:
        thinker: The model, of `load_thinker`.
        problems: Rows with prompt, and where there are such question, problem_id and answer (the
            gold): a Dataset, or a list of dictionaries. The reader may type one of her own.
        verifier: Finds answers and grades them against a gold.
        problem: Which one to begin with.
        ask_at: Tokens at which an example is asked, here and now: the thinking that Start begins
            with these settings. None is shown without.
        num_summaries: Summaries to answer with.
        temperature: Of thinking and summaries.
        seed: Decides what is drawn.
        rate: Tokens a second, one of RATES; a small model is too quick to be read.
        suffix: Appended to a typed problem, such as what a benchmark's prompts end with.
    """

    session: Session | None = None

    def __init__(
        self,
        thinker: Thinker,
        problems: Sequence[Mapping[str, Any]] = (),
        verifier: Verifier | None = None,
        *,
        problem: int = 0,
        ask_at: Sequence[int] = (),
        num_summaries: int = 8,
        temperature: float = 1.0,
        seed: int = 0,
        rate: int = 10,
        suffix: str = "",
    ) -> None:
        total = len(problems)
        if total and not 0 <= problem < total:
            raise ValueError(f"problem is {problem}; there are {total}, so give 0 to {total - 1}.")
        if rate not in RATES:
            raise ValueError(f"rate is {rate}; expected one of {RATES} (0: as fast as it can).")
        if not 1 <= num_summaries <= MOST:
            raise ValueError(f"num_summaries is {num_summaries}; expected 1 to {MOST}.")
        if not 0 <= temperature <= 2:
            raise ValueError(f"temperature is {temperature}; expected 0 (greedy) to 2.")
        super().__init__()
        self.thinker, self.problems, self.verifier = thinker, problems, verifier
        self.suffix = suffix
        self.asked: list[Asked] = []
        self._lock = threading.RLock()  # the page's events and the thinking's thread both draw
        listed = sorted({*range(min(total, LISTED)), problem}) if total else []
        options = [(f"{i}: {short(_question(problems[i]), 70)}", i) for i in listed]
        options.append(("your own: type it", OWN))
        number, first = widgets.BoundedIntText, problem if total else OWN
        self.problem = described(widgets.Dropdown, "Problem", "32em", options=options, value=first)
        self.own = described(widgets.Textarea, "Your problem", "44em", rows=3)
        self.own_gold = described(widgets.Text, "Right answer, if you know it")
        self.count = described(number, "Summaries", "10em", value=num_summaries, min=1, max=MOST)
        self.temperature = described(
            widgets.FloatSlider, "Temperature", "18em", value=temperature, min=0, max=2, step=0.1
        )
        self.seed = described(number, "Seed", "10em", value=seed, min=0, max=2**31 - 1)
        rates = [(f"{r} tokens a second" if r else "as fast as it can", r) for r in RATES]
        self.rate = described(widgets.SelectionSlider, "Speed", "26em", options=rates, value=rate)
        self.go = button(
            "Start", self.press, "Start; then stop at this token and answer; then think on",
            button_style="primary",
        )  # fmt: skip
        self.again = button(
            "Restart", self.restart, "Begin this problem anew, with the settings as they are"
        )
        self.question, self.position, self.spread = Text(), Text(), Text(live=True)
        self.live, self.pane = LiveFigure(), StreamPane(self.press)
        self.compose(
            row(self.problem, self.own, self.own_gold),
            self.question,
            row(self.go, self.again, self.position),
            row(self.count, self.temperature, self.seed, self.rate),
            self.pane,
            self.live,
            self.spread,
        )
        self._problem_chosen()
        self.on((self.problem, self.own_gold), self._problem_chosen)
        if ask_at:
            self._show_example(ask_at)

    def press(self) -> None:
        """The main button, and its key: start, answer now, or think on."""
        with self._lock:
            if self.session.state in (NEW, ENDED):
                self.restart()
            elif self.session.ask() or self.session.go_on():
                self.say()
            self._show_state()

    def restart(self) -> None:
        """Begin the same problem anew, with the settings as they are now."""
        with self._lock:
            self._clear()
            self.session.go_on()
            self._show_state()

    def close(self) -> None:
        """End the thinking and its thread, then the view."""
        if self.session is not None:
            self.session.close(CLOSING)
        super().close()

    @property
    def chosen(self) -> Mapping[str, Any]:
        """The chosen problem, or the one that was typed."""
        if self.problem.value != OWN:
            return self.problems[self.problem.value]
        prompt = [{"role": "user", "content": self.own.value.strip() + self.suffix}]
        answer = self.own_gold.value.strip() or None
        return {"prompt": prompt, "question": self.own.value, "answer": answer}

    def figure(self) -> go.Figure:
        """The thinking as it was asked, by the reader or as the example."""
        title = f"{short(self.thinker.name, 30)}: {short(_question(self.chosen), 50)}"
        return plot_asked(self.asked, title)

    def think(self) -> Thought:
        """Begins a thought of the chosen problem, settings as they are."""
        if self.problem.value == OWN and not self.own.value.strip():
            raise ValueError("no problem was typed; type one, or choose one from the list.")
        return self.thinker.think(self.chosen["prompt"], self.temperature.value, self.seed.value)

    def ask(self, thought: Thought) -> Asked:
        """Asks a thought, settings as they are."""
        return ask(thought, self.count.value, self.verifier, self.chosen.get("answer"))

    def hear(self, session: Session, text: str, asked: Asked | None, wrong: str) -> None:
        """A thread tells what was thought and answered since, and why it cannot go on, if so."""
        with self._lock:
            if session is not self.session:  # an old one
                return
            self.pane.append(text)
            if asked is not None:
                self._show_asked(asked)
            self._show_state()
            if wrong:
                self.say(wrong, kind="wrong")

    def _problem_chosen(self) -> None:
        with self._lock:
            self._clear()
            own, problem, said = self.problem.value == OWN, self.chosen, []
            for control in (self.own, self.own_gold):
                control.layout.display = None if own else "none"
            if not own:
                said.append(region("problem", [escaped(_question(problem), QUESTION)]))
                if (gold := problem.get("answer")) is not None:
                    said.append(folded("Right answer", paragraph(short(gold, 200))))
            self.question.show(*said)
            self._show_state()

    def _show_example(self, ask_at: Sequence[int]) -> None:
        try:
            with closing(self.think()) as thought:
                for budget in sorted(set(ask_at)):
                    if self.asked and thought.end:
                        break
                    while thought.length < budget and not thought.end:
                        self.pane.append(thought.step())
                    self._show_asked(self.ask(thought))
            self.say("An example, asked along its thinking. Press Start to ask it yourself.")
        except (ThinkingError, ValueError) as error:
            self.say(f"There is no example: {sentence(error)}")

    def _clear(self) -> None:
        """Another thinking, of which there is nothing yet; the one before tells no more."""
        if self.session is not None:
            self.session.close()  # not waited for: a forward pass may be long
        self.session = Session(self)
        self.asked = []
        self.pane.clear()
        self.say()
        self.spread.show()
        self.live.layout.display = "none"  # until it is asked

    def _show_state(self) -> None:
        length = self.session.length
        self.go.description, words = WORDS[self.session.state]
        self.position.say(
            f"{length:,} token{'' if length == 1 else 's'} thought, {words}. Space or Enter, here "
            "or in the text below, answers now and thinks on."
        )

    def _show_asked(self, asked: Asked) -> None:
        """A mark in the text, the figure and the answers one by one."""
        self.asked.append(asked)
        answer, count, verdict = asked.spread.loc[0, ["answer", "count", "verdict"]]
        share = f"{count} of {len(asked.summaries)}{told_verdict(verdict)}"
        told = f"▼ {asked.tokens:,} tokens: {told_answer(answer, 40)} ({share})"
        self.pane.append(told, verdict if verdict in VERDICTS else "asked")
        self.spread.show(asked_html(asked))
        self.live.update_from(plot_asked(self.asked), told_asked(asked))
        self.live.layout.display = None


def _question(problem: Mapping[str, Any]) -> str:
    prompt = problem["prompt"]
    told = problem.get("question")
    return str(told or (prompt if isinstance(prompt, str) else prompt[-1]["content"]))
