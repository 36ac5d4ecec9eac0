"""One thinking that grows token by token and can be asked for its answer at any of them.

What a view is handed, whatever model stands behind it: nothing here imports one.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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


class Thought(Protocol):
    """One thinking. All calls come from one thread, but for `close`.

    Attributes:
        text: What was thought, in complete characters.
        length: Tokens of it.
        end: How it ended: `closed` by its own marker, `eos`, `length` (the context is full), or
            `` while it goes on.
    """

    text: str
    length: int
    end: str

    def step(self) -> str:
        """Think one more token.

        Returns:
            What it adds to the text: nothing while a character is incomplete, or past the end.

        Raises:
            ThinkingError: it cannot go on now. Calling again tries again.
        """
        ...

    def answers(self, count: int) -> list[Answer]:
        """Sample `count` summaries of the thinking as it stands; it goes on as if never asked.

        What they are depends on the thought's seed and length alone, not on earlier questions. At
        temperature 0 they are all alike.

        Raises:
            ThinkingError: it cannot be asked now. Calling again tries again.
        """
        ...

    def close(self) -> None:
        """Give up what the thought holds. Any thread may call, also during a step, which then ends
        early or as the last one; calling twice does nothing more.
        """
        ...


class Thinker(Protocol):
    """A model that begins thoughts.

    Attributes:
        name: For titles.
    """

    name: str

    def think(self, prompt: Prompt, temperature: float = 1.0, seed: int = 0) -> Thought:
        """Begin a thought of a prompt.

        Args:
            prompt: A conversation, or a text that is taken as it is.
            temperature: Of thinking and summaries; 0 is greedy.
            seed: Decides everything that is drawn.

        Raises:
            ThinkingError, ValueError: the model cannot think about this; the message says why.
        """
        ...


def answer_seed(seed: int, length: int) -> int:
    """The seed of summaries at a length, in 0 … 2³¹ − 1; independent of the thinking's own."""
    digest = hashlib.sha256(f"answers {seed} {length}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
