"""One thinking in a thread of its own: it thinks, answers or rests as it is told.

No widgets here. Who listens is called from the thread, a few times a second at most.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from anytime_lab.engines.thoughts import ThinkingError, Thought
from anytime_lab.look.answer_data import Asked

THINKING, ANSWERING, PAUSED, ENDED = "thinking", "answering", "paused", "ended"
PERIOD = 0.1  # seconds between two pieces of text
LOOK = 0.25  # seconds between two looks, at rest, whether the interpreter is about to end


class Listener(Protocol):
    """Who hears what a session does. Each call names the session, for it may be an old one."""

    def thought_on(self, session: Session, piece: str) -> None:
        """Text was added (perhaps none) and `session.length` tokens are thought now."""

    def was_asked(self, session: Session, asked: Asked) -> None:
        """It was asked, and answered."""

    def state_changed(self, session: Session) -> None:
        """Its `state` is another."""

    def went_wrong(self, session: Session, sentence: str) -> None:
        """It cannot go on now; it rests."""


class Session:
    """A thread with a thought. It begins thinking at once and ends with its thinking.

    An interpreter that exits waits for the thread, which then ends by itself after the step that
    it is in: a daemon thread would be torn out of a forward pass, and abort the process.

    Args:
        begin: Makes the thought, in the thread.
        question: Asks it, in the thread.
        listener: Hears what happens.
        rate: Most tokens a second; 0 is as fast as it can.

    Attributes:
        state: THINKING, ANSWERING, PAUSED (it can go on) or ENDED.
        length: Tokens thought, as told to the listener.
    """

    def __init__(
        self,
        begin: Callable[[], Thought],
        question: Callable[[Thought], Asked],
        listener: Listener,
        rate: float = 0,
    ) -> None:
        self._begin, self._question, self._listener = begin, question, listener
        self.rate = rate
        self.state, self.length = THINKING, 0
        self._changed = threading.Condition()
        self._closed = False
        self._thought: Thought | None = None
        self._pieces: list[str] = []
        self._told_at = 0.0
        self._due = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="thinking", daemon=False)
        self._thread.start()

    def ask(self) -> bool:
        """Stop at this token and answer. False if it is not thinking."""
        return self._turn(THINKING, ANSWERING)

    def go_on(self) -> bool:
        """Think on. False if it is not at rest, or at its end."""
        return self._turn(PAUSED, THINKING)

    def set_rate(self, rate: float) -> None:
        """Let it think at another speed from now on."""
        with self._changed:
            self.rate, self._due = rate, 0.0
            self._changed.notify_all()

    def close(self, timeout: float | None = None) -> bool:
        """End it wherever it is.

        Args:
            timeout: Seconds to wait for the thread; None does not wait.

        Returns:
            Whether the thread has ended.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thought is not None:
            self._thought.close()
        if timeout is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _turn(self, before: str, after: str) -> bool:
        with self._changed:
            if self._closed or self.state != before:
                return False
            self.state = after
            self._changed.notify_all()
        return True

    # --- in the thread ---------------------------------------------------------------------------

    def _over(self) -> bool:
        """Whether it was closed, or the interpreter is about to end, which closes it."""
        self._closed = self._closed or not threading.main_thread().is_alive()
        return self._closed

    def _run(self) -> None:
        while not self._over():
            try:
                self._work()
                break
            except Exception as error:  # told in a sentence; the thought may go on later
                if self._over():
                    break
                self._tell()
                self._settle(ENDED if self._thought is None else PAUSED)
                self._listener.went_wrong(self, sentence(error))
                if self._thought is None:
                    break
        if self._thought is not None:
            self._thought.close()

    def _work(self) -> None:
        if self._thought is None:
            self._thought = self._begin()
        while not self._over():
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self.state != PAUSED, LOOK)
                state = self.state
            if self._closed or state == PAUSED:
                continue
            if state == THINKING and not self._thought.end:
                self._think()
                continue
            if state == THINKING:  # at its end it answers unasked
                self._settle(ANSWERING)
            self._answer()
            if self.state == ENDED:
                return

    def _think(self) -> None:
        if self.rate > 0 and not self._wait(self.rate):
            return
        piece = self._thought.step()
        if piece:
            self._pieces.append(piece)
        if self._thought.end or time.monotonic() >= self._told_at + PERIOD:
            self._tell()

    def _wait(self, rate: float) -> bool:
        """Wait for the next token to be due. False if there is something else to do by then."""
        now = time.monotonic()
        if self._due > now and now >= self._told_at + PERIOD:
            self._tell()
        # a thinking that was at rest, or is slower than its rate, has nothing to catch up
        due = max(self._due, now)
        with self._changed:
            stopped = self._changed.wait_for(
                lambda: self._closed or self.state != THINKING or self.rate != rate, due - now
            )
        if not stopped:
            self._due = due + 1 / rate
        return not stopped

    def _answer(self) -> None:
        self._tell()
        asked = self._question(self._thought)
        if not self._closed:
            self._listener.was_asked(self, asked)
            self._settle(ENDED if self._thought.end else PAUSED)

    def _tell(self) -> None:
        if self._closed or self._thought is None:
            return
        piece, self._pieces = "".join(self._pieces), []
        self.length, self._told_at = self._thought.length, time.monotonic()
        self._listener.thought_on(self, piece)

    def _settle(self, state: str) -> None:
        with self._changed:
            self.state = state
        if not self._closed:
            self._listener.state_changed(self)


def sentence(error: Exception) -> str:
    """What went wrong, in words: our own errors have theirs."""
    said = str(error).strip()
    if isinstance(error, (ThinkingError, ValueError)) and said:
        return said
    first = said.splitlines()[0] if said else "no more is known"
    return f"The thinking stopped ({type(error).__name__}: {first})."
