"""View: a model thinks, and is stopped at any token to show its answer now."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go

from anytime_lab.engines.thoughts import Prompt, Thinker
from anytime_lab.look.answer_data import Asked, ask, ask_along, asked_html
from anytime_lab.look.answer_figures import draw_asked, live_asked, plot_asked
from anytime_lab.look.answer_pane import StreamPane
from anytime_lab.look.answer_session import ANSWERING, ENDED, PAUSED, THINKING, Session
from anytime_lab.look.canvas import LABEL, framed, live_figure, row, style_sheet, text
from anytime_lab.page import block, escaped, paragraph, region, short
from anytime_lab.verify.verifiers import Verifier

OWN = -1  # the problem that the reader types
LISTED = 1_000  # problems in the list
QUESTION = 6_000  # characters
RATES = (1, 2, 5, 10, 20, 50, 100, 0)  # tokens a second; 0: as fast as it can
MOST = 256  # summaries
WORDS = {
    None: ("Start", "not started"),
    THINKING: ("Answer now", "thinking"),
    ANSWERING: ("Answering…", "answering"),
    PAUSED: ("Think on", "at rest"),
    ENDED: ("Start again", "ended"),
}
CLOSING = 5.0  # seconds that close() waits for a forward pass


class AnswerNow(widgets.VBox):
    """One thinking, streamed; stopped for its answers and thought on as often as one likes.

    Args:
        thinker: The model, of `load_thinker`.
        problems: Rows with prompt, and where there are such question, problem_id and answer (the
            gold): a Dataset, or a list of dictionaries. The reader may type one of her own.
        verifier: Finds answers and grades them against a gold.
        problem: Which one to begin with.
        num_summaries: Summaries to answer with.
        temperature: Of thinking and summaries.
        seed: Decides what is drawn.
        rate: Tokens a second, one of RATES; a small model is too quick to be read.
        suffix: Appended to a typed problem, such as what a benchmark's prompts end with.
        style: Bring the style sheet along (not where another view shows it).
    """

    def __init__(
        self,
        thinker: Thinker,
        problems: Sequence[Mapping[str, Any]] = (),
        verifier: Verifier | None = None,
        *,
        problem: int = 0,
        num_summaries: int = 8,
        temperature: float = 1.0,
        seed: int = 0,
        rate: int = 10,
        suffix: str = "",
        style: bool = True,
    ) -> None:
        self.session: Session | None = None
        super().__init__()
        self.thinker, self.problems, self.verifier = thinker, problems, verifier
        self.suffix = suffix
        self.asked: list[Asked] = []
        self._lock = threading.RLock()  # the page's events and the thinking's thread both draw
        self._make_controls(problem, num_summaries, temperature, seed, rate)
        self.live = live_figure([{}, {}, {"type": "bar", "orientation": "h"}], 320)
        live_asked(self.live)
        self.notes, self.spread = text(live=True), text(live=True)
        self.question, self.position = text(), text()
        self.position.layout.width = "auto"
        self.pane = StreamPane(
            self.press,
            label="thinking; Space or Enter stops it for its answer, and then thinks on",
        )
        hint = "Space or Enter, on the button or in the text below: answer now, then think on."
        self.children = [
            *([style_sheet()] if style else []),
            row(self.problem, self.own, self.own_gold),
            self.question,
            row(self.count, self.temperature, self.seed, self.rate),
            row(self.go, self.again, self.position),
            self.notes,
            text(paragraph(hint, "note")),
            self.pane,
            self.spread,
            framed(self.live),
        ]
        self._problem_chosen()
        self._observe()

    def press(self, _button: object = None) -> None:
        """The main button, and its key: start, answer now, or think on."""
        with self._lock:
            session = self.session
            if session is None or session.state == ENDED:
                self._start()
            elif session.ask() or session.go_on():
                self.notes.value = block(live=True)
            self._show_state()

    def restart(self, _button: object = None) -> None:
        """Begin the same problem anew, with the settings as they are now."""
        with self._lock:
            self._start()
            self._show_state()

    def close(self) -> None:
        """End the thinking and its thread, then the view."""
        session, self.session = self.session, None
        if session is not None:
            session.close(CLOSING)
        super().close()

    def ask_along(self, budgets: Sequence[int]) -> list[Asked]:
        """The chosen problem thought from start to end and asked at each budget, here and now.

        The same thinking that the view shows for these settings; the view itself stays as it is.

        Raises:
            ThinkingError, ValueError: the model cannot.
        """
        prompt, gold = self._chosen()
        thought = self.thinker.think(prompt, self.temperature.value, self.seed.value)
        try:
            return list(ask_along(thought, budgets, self.count.value, self.verifier, gold))
        finally:
            thought.close()

    def figure(self, budgets: Sequence[int] | None = None) -> go.Figure:
        """The static figure: of the thinking asked at given budgets, or as the reader asked it.

        Raises:
            ValueError: no budgets, and nothing was asked yet.
        """
        asked = list(self.asked) if budgets is None else self.ask_along(budgets)
        if not asked:
            raise ValueError("the thinking was not asked yet; press Answer now, or give budgets.")
        title = f"{short(self.thinker.name, 30)}: {short(self._told_question(), 50)}"
        return plot_asked(asked, title)

    # --- parts -----------------------------------------------------------------------------------

    def _make_controls(
        self, problem: int, count: int, temperature: float, seed: int, rate: int
    ) -> None:
        total = len(self.problems)
        if total and not 0 <= problem < total:
            raise ValueError(f"problem is {problem}; there are {total}, so give 0 to {total - 1}.")
        if rate not in RATES:
            raise ValueError(f"rate is {rate}; expected one of {RATES} (0: as fast as it can).")
        if not 1 <= count <= MOST:
            raise ValueError(f"num_summaries is {count}; expected 1 to {MOST}.")
        if not 0 <= temperature <= 2:
            raise ValueError(f"temperature is {temperature}; expected 0 (greedy) to 2.")
        listed = list(range(min(total, LISTED))) + ([problem] if problem >= LISTED else [])
        options = [(_label(i, self.problems[i]), i) for i in listed]
        self.problem = widgets.Dropdown(
            options=[*options, ("your own: type it", OWN)],
            value=problem if total else OWN,
            description="Problem",
            style=LABEL,
            layout={"width": "32em"},
        )
        self.own = widgets.Textarea(
            description="Your problem", style=LABEL, rows=3, layout={"width": "44em"}
        )
        self.own_gold = widgets.Text(description="Right answer, if you know it", style=LABEL)
        self.count = widgets.BoundedIntText(
            count, min=1, max=MOST, description="Summaries", style=LABEL, layout={"width": "10em"}
        )
        self.temperature = widgets.FloatSlider(
            temperature, min=0, max=2, step=0.1, description="Temperature", style=LABEL
        )
        self.seed = widgets.BoundedIntText(
            seed, min=0, max=2**31 - 1, description="Seed", style=LABEL, layout={"width": "10em"}
        )
        self.rate = widgets.SelectionSlider(
            options=[(f"{r} tokens a second" if r else "as fast as it can", r) for r in RATES],
            value=rate,
            description="Speed",
            style=LABEL,
            layout={"width": "28em"},
        )
        self.go = widgets.Button(
            button_style="primary",
            tooltip="Start; then stop at this token and answer; then think on",
        )
        self.again = widgets.Button(
            description="Restart", tooltip="Begin this problem anew, with the settings as they are"
        )

    def _observe(self) -> None:
        self.go.on_click(self.press)
        self.again.on_click(self.restart)
        for control in (self.problem, self.own_gold):
            control.observe(lambda _change: self._problem_chosen(), "value")
        self.rate.observe(self._rate_chosen, "value")

    # --- the problem -----------------------------------------------------------------------------

    def _chosen(self) -> tuple[Prompt, Any]:
        """The prompt and the gold (None: not known) of the chosen problem."""
        if self.problem.value != OWN:
            problem = self.problems[self.problem.value]
            return problem["prompt"], problem.get("answer")
        asked = self.own.value.strip()
        if not asked:
            raise ValueError("no problem was typed; type one, or choose one from the list.")
        gold = self.own_gold.value.strip() or None
        return [{"role": "user", "content": asked + self.suffix}], gold

    def _told_question(self) -> str:
        if self.problem.value == OWN:
            return self.own.value
        return _question(self.problems[self.problem.value])

    def _problem_chosen(self) -> None:
        with self._lock:
            self._end()
            self._clear()
            own = self.problem.value == OWN
            for control in (self.own, self.own_gold):
                control.layout.display = None if own else "none"
            if own:
                self.question.value = block()
            else:
                _, gold = self._chosen()
                told = "" if gold is None else paragraph(f"Right answer: {short(gold, 200)}.")
                said = escaped(self._told_question(), QUESTION)
                self.question.value = block(region("problem", [said]), told)
            self._show_state()

    def _rate_chosen(self, _change: object) -> None:
        session = self.session
        if session is not None:
            session.set_rate(self.rate.value)

    # --- the thinking ----------------------------------------------------------------------------

    def _end(self) -> None:
        session, self.session = self.session, None
        if session is not None:
            session.close()  # not waited for: a forward pass may be long, and it tells no more

    def _start(self) -> None:
        self._end()
        self._clear()
        try:
            prompt, gold = self._chosen()
        except ValueError as error:
            self.notes.value = block(paragraph(error), live=True)
            return
        temperature, seed = self.temperature.value, self.seed.value
        self.session = Session(
            begin=lambda: self.thinker.think(prompt, temperature, seed),
            question=lambda thought: ask(thought, self.count.value, self.verifier, gold),
            listener=self,
            rate=self.rate.value,
        )

    def _clear(self) -> None:
        self.asked = []
        self.pane.clear()
        self.notes.value, self.spread.value = block(live=True), block(live=True)
        draw_asked(self.live, self.asked)

    def _show_state(self) -> None:
        session = self.session
        label, words = WORDS[None if session is None else session.state]
        if self.go.description != label:
            self.go.description = label
        length = 0 if session is None else session.length
        plural = "" if length == 1 else "s"
        self.position.value = block(paragraph(f"{length:,} token{plural} thought, {words}"))

    # --- heard from the thinking's thread --------------------------------------------------------

    def thought_on(self, session: Session, piece: str) -> None:
        """See `Listener`."""
        with self._lock:
            if session is self.session:
                self.pane.append(piece)
                self._show_state()

    def was_asked(self, session: Session, asked: Asked) -> None:
        """See `Listener`."""
        with self._lock:
            if session is not self.session:
                return
            self.asked.append(asked)
            lead = asked.spread.iloc[0]
            kind = lead["verdict"] if lead["verdict"] in ("right", "wrong") else "asked"
            answer = "no answer" if lead["answer"] is None else short(lead["answer"], 40)
            verdict = "" if kind == "asked" else f", {kind}"
            share = f"{lead['count']} of {len(asked.summaries)}{verdict}"
            self.pane.mark(f"▼ {asked.tokens:,} tokens: {answer} ({share})", kind)
            self.spread.value = block(asked_html(asked), live=True)
            draw_asked(self.live, self.asked)

    def state_changed(self, session: Session) -> None:
        """See `Listener`."""
        with self._lock:
            if session is self.session:
                self._show_state()

    def went_wrong(self, session: Session, sentence: str) -> None:
        """See `Listener`."""
        with self._lock:
            if session is self.session:
                self.notes.value = block(paragraph(sentence, "wrong"), live=True)
                self._show_state()


def _question(problem: Mapping[str, Any]) -> str:
    prompt = problem["prompt"]
    told = problem.get("question")
    return str(told or (prompt if isinstance(prompt, str) else prompt[-1]["content"]))


def _label(number: int, problem: Mapping[str, Any]) -> str:
    return f"{number}: {short(_question(problem), 70)}"
