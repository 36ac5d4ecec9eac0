"""Thoughts of a transformers model: one KV cache for the thinking and all its answers."""

import copy
import threading
from dataclasses import replace

import torch
from transformers import PreTrainedTokenizerBase

from anytime_lab.engines.base import Sampling
from anytime_lab.engines.branching import Trunks
from anytime_lab.engines.hf import HFEngine, sampling_mode
from anytime_lab.engines.thoughts import Answer, Prompt, ThinkingError, answer_seed
from anytime_lab.prompts import PieceReader, ThinkingFormat, decode, detect_format, prompt_ids

DEFAULT_SAMPLING = Sampling()


class HFThinker:
    """Begins thoughts of a transformers model; see `thoughts.Thinker`.

    Several may think at once, from several threads: they take turns by the token.

    Args:
        engine: Holds the model.
        tokenizer: Of the model.
        fmt: Its format; by what the tokenizer supports if None.
        sampling: How tokens are drawn, and how long a summary may be. Its temperature is not used.
        name: For titles; the model's own if empty.
        chat_template_kwargs: For the chat template.
    """

    def __init__(
        self,
        engine: HFEngine,
        tokenizer: PreTrainedTokenizerBase,
        fmt: ThinkingFormat | None = None,
        sampling: Sampling = DEFAULT_SAMPLING,
        name: str = "",
        chat_template_kwargs: dict | None = None,
    ):
        self.engine, self.tokenizer = engine, tokenizer
        self.fmt = fmt or detect_format(tokenizer)
        self.sampling = sampling
        self.name = name or engine.model.config.name_or_path or type(engine.model).__name__
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.lock = threading.Lock()  # one step at a time: the model's mode is switched around it

    def think(self, prompt: Prompt, temperature: float = 1.0, seed: int = 0) -> "HFThought":
        """See `Thinker.think`."""
        ids = prompt_ids(prompt, self.tokenizer, self.fmt, self.chat_template_kwargs)
        room = thinking_room(self.engine.context_length, ids, self.engine.tokens, self.sampling)
        sampling = replace(self.sampling, temperature=temperature)
        with self.lock:
            trunks = self.engine.think(ids, sampling, seed)
        return HFThought(self, trunks, room, seed)


class HFThought:
    """A thinking on its cache; see `thoughts.Thought`."""

    def __init__(self, thinker: HFThinker, trunks: Trunks, room: int | None, seed: int):
        self.thinker, self.trunks, self.room, self.seed = thinker, trunks, room, seed
        self.text, self.length, self.end = "", 0, ""
        self._reader = PieceReader(thinker.tokenizer, thinker.engine.tokens)

    def step(self) -> str:
        """See `Thought.step`."""
        trunks = self._open()
        if self.end:
            return ""
        if self.room is not None and self.length >= self.room:
            self.end = "length"
            return self._add(self._reader.rest())
        with self.thinker.lock, sampling_mode(trunks.model):
            (token,) = trunks.step()
        self.length += 1
        self.end = trunks.ends[0]
        piece = self._reader.read(token)
        return self._add(piece + (self._reader.rest() if self.end else ""))

    def answers(self, count: int) -> list[Answer]:
        """See `Thought.answers`."""
        trunks = self._open()
        engine, tokenizer = self.thinker.engine, self.thinker.tokenizer
        asked = copy.copy(trunks)  # the same cache, but the thinking's random state stays its own
        device = trunks.attended.device
        asked.generator = torch.Generator(device)
        asked.generator.manual_seed(answer_seed(self.seed, self.length))
        with self.thinker.lock:
            leaves = engine.answers(asked, count)
        return [
            Answer(
                forced=decode(tokenizer, engine.tokens, leaf.forced),
                text=decode(tokenizer, engine.tokens, leaf.summary),
                tokens=len(leaf.summary),
                logprob=sum(leaf.logprobs),
                finished=leaf.finished,
            )
            for leaf in leaves
        ]

    def close(self) -> None:
        """See `Thought.close`; frees the cache."""
        self.trunks = None

    def _open(self) -> Trunks:
        trunks = self.trunks
        if trunks is None:
            raise ThinkingError("this thought was closed; begin another.")
        return trunks

    def _add(self, piece: str) -> str:
        self.text += piece
        return piece


def thinking_room(context: int | None, prompt, tokens, sampling: Sampling) -> int | None:
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
