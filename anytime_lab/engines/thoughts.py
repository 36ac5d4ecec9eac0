"""One thinking that grows token by token and can be asked for its answer at any of them.

What a view is handed, whatever engine stands behind it: nothing here imports one. An engine that
branches off a cache computes no token twice; one that completes prefixes (a server, say) thinks a
few tokens at a time, and its prefix cache spares it the rest. With one seed a thinking is the same
however often it is asked.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from anytime_lab.prompts import PieceReader, prompt_ids

UNKNOWN_ROOM = 8192  # tokens of thinking where an engine does not tell its context

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
        ids: What was thought, in token ids.
        text: The same, in complete characters.
        end: How it ended: `closed` by its own marker, `eos`, `length` (the context is full), or
            `` while it goes on.
    """

    def __init__(self, engine: Any, prompt: list[int], room: int, sampling: Any, seed: int):
        self.engine, self.tokens = engine, engine.tokens
        self.prompt, self.room, self.seed = prompt, room, seed
        self.ids: list[int] = []
        self.text = self.end = ""
        self._reader = PieceReader(self.tokens)
        self._thinking = engine.think(prompt, sampling, seed)

    @property
    def length(self) -> int:
        """Tokens thought."""
        return len(self.ids)

    def step(self) -> str:
        """Think one more token.

        Returns:
            What it adds to the text: nothing while a character is incomplete, or past the end.

        Raises:
            ThinkingError: it cannot go on now. Calling again tries again.
        """
        thinking = self._open()
        if self.end:
            return ""
        token, end = self.engine.step(thinking, self.room - self.length)
        self._open()
        self.ids.append(token)
        self.end = end or ("length" if self.length == self.room else "")
        piece = self._reader.read(token) + (self._reader.rest() if self.end else "")
        self.text += piece
        return piece

    def answers(self, count: int) -> list[Answer]:
        """Sample `count` summaries of the thinking as it stands; it goes on as if never asked.

        What they are depends on the thought's seed and length alone, not on earlier questions. At
        temperature 0 they are all alike.

        Raises:
            ThinkingError: it cannot be asked now. Calling again tries again.
        """
        digest = hashlib.sha256(f"answers {self.seed} {self.length}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big") >> 1
        leaves = self.engine.answers(self._open(), count, seed)
        self._open()
        return [
            Answer(
                forced=self.tokens.decode(leaf.forced),
                text=self.tokens.decode(leaf.summary),
                tokens=len(leaf.summary),
                logprob=sum(leaf.logprobs) if leaf.logprobs else None,
                finished=leaf.finished,
            )
            for leaf in leaves
        ]

    def close(self) -> None:
        """Give up what the thought holds. Any thread may call; a step that runs ends in an error,
        and calling twice does nothing more.
        """
        self._thinking = None

    def _open(self) -> Any:
        thinking = self._thinking
        if thinking is None:
            raise ThinkingError("this thought was closed; begin another.")
        return thinking


@dataclass(frozen=True)
class Thinker:
    """Begins thoughts of an engine's model.

    Several may think at once, from several threads: those of one model in this process take turns
    by the token.

    Attributes:
        engine: Such as an `HFEngine` or a `ServerEngine`.
        sampling: How tokens are drawn, and how long a summary may be. Its temperature is not used.
        name: For titles.
        chat_template_kwargs: For the chat template.
        max_thinking_tokens: Most tokens of a thinking; all that fit into the context if None (or
            `UNKNOWN_ROOM`, where an engine does not tell its context).
    """

    engine: Any
    sampling: Any
    name: str = ""
    chat_template_kwargs: Mapping[str, Any] | None = None
    max_thinking_tokens: int | None = None

    def think(self, prompt: Prompt, temperature: float = 1.0, seed: int = 0) -> Thought:
        """Begin a thought of a prompt. Of a server nothing is asked before the first step.

        Args:
            prompt: A conversation, or a text that is taken as it is.
            temperature: Of thinking and summaries; 0 is greedy.
            seed: Decides everything that is drawn.

        Raises:
            ThinkingError, ValueError: the model cannot think about this; the message says why.
        """
        engine, tokens = self.engine, self.engine.tokens
        sampling = replace(self.sampling, temperature=temperature)
        ids = prompt_ids(prompt, tokens.tokenizer, tokens.fmt, self.chat_template_kwargs)
        room = engine.room(len(ids), sampling)
        if room is not None and room < 1:
            raise ThinkingError(
                f"the model's context is {engine.context_length:,} tokens; prompt {len(ids):,} + "
                f"forced text {tokens.longest_forced:,} + summary {sampling.max_summary_tokens:,} "
                "leave none to think. Give a shorter problem, or a smaller max_summary_tokens."
            )
        limits = [n for n in (room, self.max_thinking_tokens) if n is not None]
        return Thought(engine, ids, min(limits, default=UNKNOWN_ROOM), sampling, seed)
