"""One thinking that grows token by token and can be asked for its answer at any of them.

What a view is handed, whatever model stands behind it: nothing here imports one.

Behind a server a thinking is one streamed completion. It stays open while summaries are asked for
by requests of their own, and is read on afterwards: no token of it is computed twice, and with one
seed it is the same however often it is asked. A question stands on the prefix that the server has
cached (vLLM: in whole blocks; what is left of the last one is read again). The server may think
ahead meanwhile.
"""

import hashlib
import threading
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from anytime_lab.prompts import PieceReader, ThinkingTokens, decode, prompt_ids

UNKNOWN_ROOM = 8192  # tokens of thinking asked for where a server does not tell its context

Prompt = str | Sequence[Mapping[str, Any]]


class ThinkingError(RuntimeError):
    """A thinking cannot go on now; the message says why and what to do."""


@dataclass(frozen=True)
class Answer:
    """One summary of a thinking as it stood.

    Attributes:
        forced: The text inserted before it (BRPO §5).
        text: The summary, without EOS.
        tokens: Tokens sampled for it, EOS included.
        logprob: Sum of their log-probs, in nats; None where the server does not tell.
        finished: Whether it ended by itself.
    """

    forced: str
    text: str
    tokens: int
    logprob: float | None
    finished: bool


class Thought:
    """One thinking. All calls come from one thread, but for `close`.

    Attributes:
        text: What was thought, in complete characters.
        length: Tokens of it.
        end: How it ended: `closed` by its own marker, `eos`, `length` (the context is full), or
            `` while it goes on.
    """

    def __init__(self, tokens: ThinkingTokens, room: int | None, seed: int):
        self.tokens, self.room, self.seed = tokens, room, seed
        self.text, self.length, self.end = "", 0, ""
        self._reader = PieceReader(tokens.tokenizer, tokens)

    def step(self) -> str:
        """Think one more token.

        Returns:
            What it adds to the text: nothing while a character is incomplete, or past the end.

        Raises:
            ThinkingError: it cannot go on now. Calling again tries again.
        """
        raise NotImplementedError

    def answers(self, count: int) -> list[Answer]:
        """Sample `count` summaries of the thinking as it stands; it goes on as if never asked.

        What they are depends on the thought's seed and length alone, not on earlier questions. At
        temperature 0 they are all alike.

        Raises:
            ThinkingError: it cannot be asked now. Calling again tries again.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Give up what the thought holds. Any thread may call, also during a step, which then ends
        early or as the last one; calling twice does nothing more.
        """
        raise NotImplementedError

    def _read(self, token: int, end: str) -> str:
        self.length += 1
        piece, self.end = self._reader.read(token), end
        return self._add(piece + (self._reader.rest() if end else ""))

    def _ended(self, end: str) -> str:
        self.end = end
        return self._add(self._reader.rest())

    def _add(self, piece: str) -> str:
        self.text += piece
        return piece

    def _text_of(self, ids: Sequence[int]) -> str:
        return decode(self.tokens.tokenizer, self.tokens, ids)


class Thinker:
    """Begins thoughts of an engine's model.

    Several may think at once, from several threads: those of one model in this process take turns
    by the token.

    Args:
        engine: An `HFEngine`, or a `ServerEngine`.
        sampling: How tokens are drawn, and how long a summary may be. Its temperature is not used.
        name: For titles.
        chat_template_kwargs: For the chat template.
        max_thinking_tokens: Most tokens of a thinking; all that fit into the context if None (or
            `UNKNOWN_ROOM`, where a server does not tell its context).
    """

    def __init__(
        self,
        engine: Any,
        sampling: Any,
        name: str = "",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        max_thinking_tokens: int | None = None,
    ):
        self.engine, self.sampling, self.name = engine, sampling, name
        self.tokens, self.tokenizer = engine.tokens, engine.tokens.tokenizer
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.max_thinking_tokens = max_thinking_tokens
        self.lock = threading.Lock()  # one step at a time: the model's mode is switched around it

    def think(self, prompt: Prompt, temperature: float = 1.0, seed: int = 0) -> Thought:
        """Begin a thought of a prompt. Of a server nothing is asked before the first step.

        Args:
            prompt: A conversation, or a text that is taken as it is.
            temperature: Of thinking and summaries; 0 is greedy.
            seed: Decides everything that is drawn.

        Raises:
            ThinkingError, ValueError: the model cannot think about this; the message says why.
        """
        engine, tokens = self.engine, self.tokens
        ids = prompt_ids(prompt, tokens.tokenizer, tokens.fmt, self.chat_template_kwargs)
        room = thinking_room(engine.context_length, ids, tokens, self.sampling)
        limits = [n for n in (room, self.max_thinking_tokens) if n is not None]
        sampling = replace(self.sampling, temperature=temperature)
        if hasattr(engine, "client"):
            return ServerThought(engine, ids, min(limits, default=UNKNOWN_ROOM), sampling, seed)
        with self.lock:
            trunks = engine.think(ids, sampling, seed)
        return HFThought(self, trunks, min(limits, default=None), seed)


def answer_seed(seed: int, length: int) -> int:
    """The seed of summaries at a length, in 0 … 2³¹ − 1; independent of the thinking's own."""
    digest = hashlib.sha256(f"answers {seed} {length}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def thinking_room(context: int | None, prompt, tokens, sampling: Any) -> int | None:
    """Tokens of thinking that fit beside the prompt, the forced text and a summary.

    Args:
        context: Positions of the model; None where it has no limit.
        prompt: Token ids.
        tokens: ThinkingTokens.
        sampling: For the length of a summary.

    Raises:
        ThinkingError: none fit.
    """
    if context is None:
        return None
    forced = max(len(tokens.cut_ids), len(tokens.header_ids))
    room = context - len(prompt) - forced - sampling.max_summary_tokens
    if room < 1:
        raise ThinkingError(
            f"the model's context is {context:,} tokens; prompt {len(prompt):,} + forced text "
            f"{forced:,} + summary {sampling.max_summary_tokens:,} leave none to think. Give a "
            "shorter problem, or a smaller max_summary_tokens."
        )
    return room


class HFThought(Thought):
    """A thinking on its cache; see `Thought`."""

    def __init__(self, thinker: Thinker, trunks: Any, room: int | None, seed: int):
        super().__init__(thinker.tokens, room, seed)
        self.engine, self.lock, self.trunks = thinker.engine, thinker.lock, trunks

    def step(self) -> str:
        """See `Thought.step`."""
        trunks = self._open()
        if self.end:
            return ""
        if self.room is not None and self.length >= self.room:
            return self._ended("length")
        with self.lock:
            token = self.engine.step(trunks)
        return self._read(token, trunks.ends[0])

    def answers(self, count: int) -> list[Answer]:
        """See `Thought.answers`."""
        trunks = self._open()
        with self.lock:
            leaves = self.engine.answers(trunks, count, answer_seed(self.seed, self.length))
        return [
            Answer(
                forced=self._text_of(leaf.forced),
                text=self._text_of(leaf.summary),
                tokens=len(leaf.summary),
                logprob=sum(leaf.logprobs),
                finished=leaf.finished,
            )
            for leaf in leaves
        ]

    def close(self) -> None:
        """See `Thought.close`; frees the cache."""
        self.trunks = None

    def _open(self) -> Any:
        trunks = self.trunks
        if trunks is None:
            raise ThinkingError("this thought was closed; begin another.")
        return trunks


class ServerThought(Thought):
    """A thinking on an open stream; see `Thought`.

    Where the server tells token ids (vLLM), tokens are exact. Elsewhere a token is what one event
    adds, and the text is tokenised again to be asked.
    """

    def __init__(self, engine: Any, prompt: list[int], room: int, sampling: Any, seed: int):
        super().__init__(engine.tokens, room, seed)
        self.engine, self.prompt, self.sampling = engine, prompt, sampling
        self.ids: list[int] | None = None  # of the thinking, where the server tells them
        self._waiting: deque[int | str] = deque()  # tokens that came, but were not stepped over
        self._finish = ""
        self._events: Generator[dict[str, Any], None, None] | None = None
        self._opened = 0
        self._closed = False
        self._in_use = threading.Lock()

    def step(self) -> str:
        """See `Thought.step`. A stream that broke off is opened again where it was."""
        with self._in_use:
            return self._step()

    def _step(self) -> str:
        self._check_open()
        if self.end:
            return ""
        while not self._waiting and not self._finish:
            self._receive()
        if not self._waiting:
            self._hang_up()
            ended = "eos" if self.tokens.fmt.think_close else "closed"
            return self._ended("length" if self._finish == "length" else ended)
        token = self._waiting.popleft()
        if isinstance(token, int):
            self.ids.append(token)
            piece = self._read(token, self.tokens.end(self.ids))
        else:
            piece = self._read_text(token)
        if self.end:  # by a token; what a server sends past it is not part of the thinking
            self._hang_up()
        return piece

    def answers(self, count: int) -> list[Answer]:
        """See `Thought.answers`. Their log-probs are as the server counts them."""
        with self._in_use:
            return self._answers(count)

    def _answers(self, count: int) -> list[Answer]:
        self._check_open()
        tokens = self.tokens
        thought = self._thought_ids()
        thought = thought[: tokens.kept(thought)]
        forced = tokens.forced(self.end or "length", len(thought), len(thought))
        greedy = self.sampling.temperature == 0  # servers refuse more than one of those
        body = self.engine.body([*self.prompt, *thought, *forced], self.sampling) | {
            "max_tokens": self.sampling.max_summary_tokens,
            "n": 1 if greedy else count,
            "seed": answer_seed(self.seed, self.length),
            "logprobs": 1,
        }
        choices = self.engine.client.complete(body).get("choices") or []
        self._check_open()
        if len(choices) != body["n"]:
            raise ThinkingError(
                f"the server at {self.engine.url} returned {len(choices)} summaries; {body['n']} "
                "were asked for."
            )
        made = [self._answer(choice, self._text_of(forced)) for choice in choices]
        return made * count if greedy else made

    def close(self) -> None:
        """See `Thought.close`; the server stops thinking when the stream is cut off."""
        self._closed = True
        if self._in_use.acquire(blocking=False):  # else the call that goes on clears up
            try:
                self._hang_up()
            finally:
                self._in_use.release()

    # --- the stream ------------------------------------------------------------------------------

    def _receive(self) -> None:
        """Read one event of the stream, opened where the thinking stands if it is not open."""
        try:
            if self._events is None:
                if self.length >= self.room:
                    self._finish = "length"
                    return
                ids = [*self.prompt, *self._thought_ids()]
                body = self.engine.body(ids, self.sampling) | {
                    "max_tokens": self.room - self.length,
                    "seed": (self.seed + self._opened) % 2**31,
                    "stop_token_ids": sorted(self.tokens.stop_ids),
                    "stream": True,
                }
                self._opened += 1
                self._events = self.engine.client.stream(body)
            event = next(self._events, None)
            self._check_open()
            if event is None:
                self._finish = self._finish or "stop"
                return
            for choice in event.get("choices") or []:
                self._read_choice(choice)
        except ThinkingError as error:
            self._hang_up()
            self._check_open()
            raise ThinkingError(
                f"{error} {self.length:,} tokens were thought; thinking on begins there."
            ) from error

    def _read_choice(self, choice: dict[str, Any]) -> None:
        ids, text = choice.get("token_ids"), choice.get("text")
        if ids and self.ids is None and not self.length:
            self.ids = []
        if self.ids is not None:
            self._waiting += ids or []
        elif text:
            self._waiting.append(text)
        if choice.get("finish_reason"):
            self._finish = str(choice["finish_reason"])

    def _read_text(self, token: str) -> str:
        """Add a piece of text; a marker may come in parts, or with what follows it."""
        self.length += 1
        close = self.tokens.fmt.think_close
        at = (self.text + token).find(close, max(0, len(self.text) - len(close))) if close else -1
        if at < 0:
            return self._add(token)
        self.end = "closed"
        return self._add(token[: at + len(close) - len(self.text)])

    def _thought_ids(self) -> list[int]:
        if self.ids is not None:
            return self.ids
        return list(self.tokens.tokenizer(self.text, add_special_tokens=False)["input_ids"])

    def _answer(self, choice: dict[str, Any], forced: str) -> Answer:
        tokenizer, logprobs = self.tokens.tokenizer, choice.get("logprobs") or {}
        values = logprobs.get("token_logprobs")
        text, ids = choice.get("text") or "", choice.get("token_ids")
        if ids:
            text = self._text_of(ids)
        told = values is not None and all(value is not None for value in values)
        size = len(ids or values or tokenizer(text, add_special_tokens=False)["input_ids"])
        return Answer(
            forced=forced,
            text=text,
            tokens=size,
            logprob=float(sum(values)) if told and values else None,
            finished=choice.get("finish_reason") != "length",
        )

    # --- ends ------------------------------------------------------------------------------------

    def _hang_up(self) -> None:
        events, self._events = self._events, None
        self._waiting.clear()
        if events is not None:
            events.close()

    def _check_open(self) -> None:
        if self._closed:
            self._hang_up()
            raise ThinkingError("this thought was closed; begin another.")
