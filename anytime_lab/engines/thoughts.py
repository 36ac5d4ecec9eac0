"""One thinking that grows token by token and can be asked for its answer at any of them.

What a view is handed, whatever engine stands behind it: nothing here imports one. An engine that
branches off a cache computes no token twice; one that completes prefixes (a server, say) thinks a
few tokens at a time, and its prefix cache spares it the rest. With one seed a thinking is the same
however often it is asked.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from anytime_lab.prompts import PieceReader, prompt_ids

UNKNOWN_ROOM = 8192  # tokens of thinking where an engine does not tell its context


class ThinkingError(RuntimeError):
    """A thinking cannot go on now; the message says why and what to do."""


class Answer(NamedTuple):
    """One summary of a thinking as it stood."""

    forced: str  # the text inserted before it (BRPO §5)
    text: str  # the summary, without EOS
    tokens: int  # sampled for it, EOS included
    logprob: float | None  # sum of their log-probs, in nats; None where the server does not tell
    finished: bool  # whether it ended by itself


class Thought:
    """One thinking. All calls come from one thread, but for `close`."""

    def __init__(self, engine: Any, prompt: list[int], room: int, sampling: Any, seed: int):
        self.engine, self.tokens = engine, engine.tokens
        self.prompt, self.room, self.seed = prompt, room, seed
        self.ids: list[int] = []  # what was thought, in token ids
        self.text = ""  # the same, in complete characters
        # `closed` by its own marker, `eos`, `length` (the context is full), or `` while it goes on
        self.end = ""
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
        seed, read = int.from_bytes(digest[:4], "big") >> 1, self.tokens.decode
        leaves = self.engine.answers(self._open(), count, seed)
        self._open()
        answers = []
        for leaf in leaves:
            logprob = sum(leaf.logprobs) if leaf.logprobs else None
            said = read(leaf.forced), read(leaf.summary)
            answers.append(Answer(*said, len(leaf.summary), logprob, leaf.finished))
        return answers

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
    """

    engine: Any  # such as an `HFEngine` or a `ServerEngine`
    sampling: Any  # how tokens are drawn, how long a summary may be; its temperature is not used
    name: str = ""  # for titles
    chat_template_kwargs: Mapping[str, Any] | None = None  # for the chat template

    def think(
        self, prompt: str | Sequence[Mapping[str, Any]], temperature: float = 1.0, seed: int = 0
    ) -> Thought:
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
        return Thought(engine, ids, UNKNOWN_ROOM if room is None else room, sampling, seed)
