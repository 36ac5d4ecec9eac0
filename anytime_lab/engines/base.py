"""How tokens are drawn, and trees by completing prefixes, whatever completes them."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from anytime_lab.priors import check_budgets
from anytime_lab.prompts import ThinkingTokens
from anytime_lab.tree import Leaf, Tree, cuts


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: Keep the likeliest tokens that hold this much probability.
        top_k: Keep this many likeliest tokens; 0 keeps all.
        min_p: Keep tokens at least this likely relative to the likeliest.
        max_summary_tokens: Most tokens sampled for a summary, without the forced text.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_summary_tokens: int = 118

    @property
    def filters(self) -> dict[str, float]:
        """All but the length, as transformers, vLLM and servers name them."""
        return {name: getattr(self, name) for name in ("temperature", "top_p", "top_k", "min_p")}

    def __post_init__(self) -> None:
        t, p, m = self.temperature, self.top_p, self.min_p
        rows = (
            ("temperature", math.isfinite(t) and t >= 0, "0 (greedy) or more"),
            ("top_p", 0 < p <= 1, "above 0 and at most 1 (all)"),
            ("top_k", self.top_k >= 0, "0 (all) or a count of tokens"),
            ("min_p", 0 <= m < 1, "0 (all) or more, below 1"),
            ("max_summary_tokens", self.max_summary_tokens >= 1, "at least 1"),
        )
        for name, holds, wanted in rows:
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)}; expected {wanted}.")


def sample_tokens(
    logits: Tensor, sampling: Sampling, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Draw a token from each row of logits.

    Args:
        logits: (..., V).
        sampling: Temperature and filters.
        generator: Source of randomness on the logits' device; None is the global one.

    Returns:
        Tokens (...) and their log-probs (...), in nats, at the sampling temperature (at 1 where
        that is 0) and before any filter: what a trainer that scores all tokens computes.
    """
    logits = logits.float()
    if sampling.temperature > 0:
        logits = logits / sampling.temperature
    logprobs = logits.log_softmax(-1)
    if sampling.temperature == 0:
        tokens = logprobs.argmax(-1)
    else:
        # argmax p / Exp(1) is a draw from p, without the host round trips of multinomial.
        noise = torch.empty_like(logprobs).exponential_(generator=generator)
        tokens = (_kept(logprobs, sampling) - noise.log()).argmax(-1)
    return tokens, logprobs.gather(-1, tokens[..., None])[..., 0]


def _kept(logprobs: Tensor, sampling: Sampling) -> Tensor:
    """Log-probs with -inf on the tokens that the filters leave out, as `generate` does it."""
    kept = logprobs.flatten(0, -2)
    for value, filtered in (
        (sampling.top_k, TopKLogitsWarper),
        (sampling.top_p if sampling.top_p < 1 else 0, TopPLogitsWarper),
        (sampling.min_p, MinPLogitsWarper),
    ):
        kept = filtered(value)(None, kept) if value else kept
    return kept.view_as(logprobs)


@dataclass(frozen=True)
class Prefix:
    """Token ids to go on from.

    Attributes:
        ids: Token ids.
        count: Continuations wanted.
        seed: Fixes the randomness of these continuations; None leaves it to the engine.
    """

    ids: tuple[int, ...]
    count: int
    seed: int | None = None


@dataclass(frozen=True)
class Continuation:
    """Sampled tokens, the stop token included where it was sampled, and their log-probs.

    Attributes:
        exact: Whether the engine told both; else they are read off a text.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    exact: bool = True


@dataclass
class Thinking:
    """One thinking that is asked for token by token.

    Attributes:
        prompt: Token ids.
        sampling: How its tokens and those of its summaries are drawn.
        seed: Fixes its randomness; None leaves it to the engine.
        ids: What was thought.
        ahead: What the engine has completed beyond that.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    seed: int | None = None
    ids: list[int] = field(default_factory=list)
    ahead: list[int] = field(default_factory=list)


AHEAD = 8  # tokens that a thinking is completed by at a time


class Engine(ABC):
    """Samples one tree for each prompt: two phases, of thinkings and of summaries on them.

    An engine says how prefixes are completed; all else follows from that. One that can branch off a
    cache has its own ways.

    Attributes:
        tokens: The thinking format in token ids.
        context_length: Tokens of prompt, thinking and summary together; None where not known.
    """

    tokens: ThinkingTokens
    context_length: int | None = None

    @abstractmethod
    def complete(
        self, prefixes: list[Prefix], limit: int, thinks: bool, sampling: Sampling
    ) -> list[list[Continuation]]:
        """For each prefix its `count` continuations of at most `limit` tokens.

        A thinking goes on up to `stop_ids` or `stop_text` of the tokens, a summary up to their
        `eos_ids`; what comes after is cut off.
        """

    def ask(
        self, prefix: Prefix, limit: int, thinks: bool, sampling: Sampling
    ) -> list[Continuation]:
        """As `complete`, of one prefix and for somebody who watches: log-probs may be missing."""
        return self.complete([prefix], limit, thinks, sampling)[0]

    def room(self, prompt: int, sampling: Sampling) -> int | None:
        """Tokens of thinking that fit beside a prompt of so many, forced text and a summary.

        None where the context is not known; 0 or less where none fit.
        """
        if self.context_length is None:
            return None
        beside = prompt + self.tokens.longest_forced + sampling.max_summary_tokens
        return self.context_length - beside

    def sample_trees(
        self,
        prompts: Sequence[Sequence[int]],
        budgets: Sequence[int],
        num_summaries: int,
        sampling: Sampling,
        seed: int | None = None,
        share_cuts: bool = False,
    ) -> list[Tree]:
        """Sample a thinking of at most `budgets[-1]` tokens and its summaries for each prompt.

        A thinking's randomness comes from the seed and its row, a summary's from the seed, its row
        and its budget: which prefixes travel together changes nothing.

        Args:
            prompts: Token ids, think-open marker included. Repeat a prompt for several samples.
            budgets: Increasing numbers of thinking tokens.
            num_summaries: Summaries for each budget.
            sampling: How tokens are drawn.
            seed: Makes the result depend on nothing else; None takes the global random state.
            share_cuts: Let the budgets past the end of a thinking share their summaries, instead of
                sampling new ones. There are J·S leaves either way.

        Raises:
            ValueError: budgets, number of summaries or a prompt cannot be sampled from.
        """
        budgets = check_budgets(budgets)
        if num_summaries < 1:
            raise ValueError(f"num_summaries is {num_summaries}; expected at least 1.")
        if any(not prompt for prompt in prompts):
            raise ValueError("a prompt is empty; expected at least the think-open marker.")
        if not prompts:
            return []
        return self._sample(prompts, budgets, num_summaries, sampling, seed, share_cuts)

    def _sample(
        self,
        prompts: Sequence[Sequence[int]],
        budgets: tuple[int, ...],
        num_summaries: int,
        sampling: Sampling,
        seed: int | None,
        share_cuts: bool,
    ) -> list[Tree]:
        tokens = self.tokens
        wanted = [
            Prefix(tuple(prompt), 1, derived_seed(seed, row, "thinking"))
            for row, prompt in enumerate(prompts)
        ]
        trunks = []
        for (made,) in self.complete(wanted, budgets[-1], True, sampling):
            size = tokens.first_end(made.tokens, True)
            end = tokens.end(made.tokens[:size])
            if not end and size < budgets[-1]:
                raise RuntimeError(STOPPED.format(size, budgets[-1]))
            trunks.append((made.tokens[:size], made.logprobs[:size], end or "length"))
        # Greedy summaries of a cut are all the same, and vLLM refuses to sample them twice.
        count = num_summaries if sampling.temperature > 0 else 1
        stands, prefixes = [], []  # (row, cut, forced text) of each prefix that is summarised
        leaves_of = []  # for each row and budget the prefix that its summaries follow
        for row, (thinking, _, end) in enumerate(trunks):
            kept = tokens.kept(thinking)
            distinct, places = leaf_cuts(kept, budgets, share_cuts)
            leaves_of.append([len(prefixes) + place for place in places])
            for number, cut in enumerate(distinct):
                forced = tokens.forced(end, cut, kept)
                ids = (*wanted[row].ids, *thinking[:cut], *forced)
                prefixes.append(Prefix(ids, count, derived_seed(seed, row, f"cut {number}")))
                stands.append((cut, forced))
        summaries = self.complete(prefixes, sampling.max_summary_tokens, False, sampling)
        leaves = [
            [summary_leaf(tokens, *stand, one) for one in own] * (num_summaries // count)
            for stand, own in zip(stands, summaries, strict=True)
        ]
        return [
            Tree(prompt.ids, *trunk, tuple(chain(*(leaves[n] for n in own))))
            for prompt, trunk, own in zip(wanted, trunks, leaves_of, strict=True)
        ]

    # A thinking that goes on by a token and is asked in between.

    def think(self, prompt: Sequence[int], sampling: Sampling, seed: int | None = None) -> Any:
        """Begin one thinking, to go on with `step` and branch off by `answers`."""
        return Thinking(tuple(prompt), sampling, seed)

    def step(self, thinking: Any, most: int = AHEAD) -> tuple[int, str]:
        """Think one more token; with a seed it is the same however often the thinking is asked.

        Args:
            thinking: What `think` gave.
            most: Tokens that it may still grow by.

        Returns:
            The token, and how the thinking ends with it (`ThinkingTokens.end`).
        """
        if not thinking.ahead:
            length = len(thinking.ids)
            seed = None if thinking.seed is None else (thinking.seed + length) % 2**31
            prefix = Prefix((*thinking.prompt, *thinking.ids), 1, seed)
            (made,) = self.ask(prefix, min(most, AHEAD), True, thinking.sampling)
            if not made.tokens:
                raise RuntimeError(STOPPED.format(length, "more"))
            thinking.ahead += made.tokens
        thinking.ids.append(thinking.ahead.pop(0))
        return thinking.ids[-1], self.tokens.end(thinking.ids)

    def answers(self, thinking: Any, count: int, seed: int | None = None) -> list[Leaf]:
        """Sample `count` summaries of a thinking as it stands; it goes on as if never asked.

        With a seed they depend on nothing else. At temperature 0 they are all alike.
        """
        tokens, ids, sampling = self.tokens, thinking.ids, thinking.sampling
        kept = tokens.kept(ids)
        forced = tokens.forced(tokens.end(ids) or "length", kept, kept)
        drawn = count if sampling.temperature > 0 else 1
        prefix = Prefix((*thinking.prompt, *ids[:kept], *forced), drawn, seed)
        made = self.ask(prefix, sampling.max_summary_tokens, False, sampling)
        return [summary_leaf(tokens, kept, forced, one) for one in made] * (count // drawn)


def leaf_cuts(
    length: int, budgets: Sequence[int], share_cuts: bool
) -> tuple[Sequence[int], list[int]]:
    """Cuts to sample summaries at, and for each budget which of these it takes."""
    wanted = cuts(length, budgets)
    distinct = list(dict.fromkeys(wanted)) if share_cuts else wanted
    return distinct, [distinct.index(cut) if share_cuts else n for n, cut in enumerate(wanted)]


def summary_leaf(
    tokens: ThinkingTokens, cut: int, forced: tuple[int, ...], made: Continuation
) -> Leaf:
    """A leaf of what was sampled after the forced text, up to the end of the turn."""
    size = tokens.first_end(made.tokens, False)
    finished = made.tokens[size - 1] in tokens.eos_ids
    return Leaf(cut, forced, made.tokens[:size], made.logprobs[:size], finished)


def derived_seed(seed: int | None, row: int, what: str) -> int | None:
    """A seed for one prefix; 32 bits, which every engine takes, n continuations use n in a row."""
    if seed is None:
        return None
    digest = hashlib.sha256(f"anytime_lab {seed} {row} {what}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 2


STOPPED = (
    "the engine ended a thinking after {} of {} tokens without a stop token. Its context is too "
    "short, or it stops at tokens of its own: raise its context length (vLLM: max_model_len), and "
    "start it without extra stop tokens."
)
