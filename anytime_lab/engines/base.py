"""How tokens are drawn, and trees by completing prefixes, whatever completes them."""

import copy
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from anytime_lab.priors import check_budgets
from anytime_lab.prompts import ThinkingTokens
from anytime_lab.tree import Leaf, Tree


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
        rows = (
            ("temperature", lambda value: 0 <= value < math.inf, "0 (greedy) or more"),
            ("top_p", lambda value: 0 < value <= 1, "above 0 and at most 1 (all)"),
            ("top_k", lambda value: value >= 0, "0 (all) or a count of tokens"),
            ("min_p", lambda value: 0 <= value < 1, "0 (all) or more, below 1"),
            ("max_summary_tokens", lambda value: value >= 1, "at least 1"),
        )
        for name, holds, wanted in rows:
            value = getattr(self, name)
            if not isinstance(value, Real) or not holds(value):
                raise ValueError(f"{name} is {value!r}; expected {wanted}.")


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
    if sampling.temperature not in (0, 1):
        logits = logits / sampling.temperature
    logprobs = logits.log_softmax(-1)
    if sampling.temperature == 0:
        tokens = logprobs.argmax(-1)
    else:
        # argmax p / Exp(1) is a draw from p, without the host round trips of multinomial.
        if logits.device.type == "cpu":  # `exponential_` to the bit, in two thirds of its time
            shape, double = logprobs.shape, torch.float64
            noise = torch.rand(shape, dtype=double, generator=generator).neg_().log1p_()
            noise = noise.float().neg_()
        else:
            noise = torch.empty_like(logprobs).exponential_(generator=generator)
        tokens = noise.log_().sub_(_kept(logprobs, sampling)).argmin(-1)
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


class Thinkings:
    """R thinkings as far as they have come; an engine may keep more of them.

    Attributes:
        prompts: R prompts, in token ids.
        sampling: How their tokens and those of their summaries are drawn.
        seed: Fixes what is drawn; None leaves it to the engine.
        thinkings: R lists of sampled tokens.
        logprobs: R lists of their log-probs.
        ends: R of `closed`, `eos`, or `` while the thinking goes on.
        watched: Whether it is one that is asked for token by token, as `Engine.ask` says.
        ahead: What the engine has completed beyond that one.
    """

    watched = False

    def __init__(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int | None = None
    ):
        self.prompts = [tuple(prompt) for prompt in prompts]
        self.sampling, self.seed = sampling, seed
        self.thinkings: list[list[int]] = [[] for _ in prompts]
        self.logprobs: list[list[float]] = [[] for _ in prompts]
        self.ends = [""] * len(self.prompts)
        self.ahead: list[int] = []


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
    ) -> list[Continuation]:
        """For each prefix in turn its `count` continuations of at most `limit` tokens.

        A thinking goes on up to `stop_ids` or `stop_text` of the tokens, a summary up to their
        `eos_ids`; what comes after is cut off.
        """

    def ask(
        self, prefix: Prefix, limit: int, thinks: bool, sampling: Sampling
    ) -> list[Continuation]:
        """As `complete`, of one prefix and for somebody who watches: log-probs may be missing."""
        return self.complete([prefix], limit, thinks, sampling)

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
        made = Thinkings(prompts, sampling, seed)
        return self._sample(made, budgets, num_summaries, share_cuts)

    def _sample(
        self, made: Thinkings, budgets: tuple[int, ...], num_summaries: int, share_cuts: bool
    ) -> list[Tree]:
        prefixes = [
            Prefix(prompt, 1, derived_seed(made.seed, row, "thinking"))
            for row, prompt in enumerate(made.prompts)
        ]
        for row, one in enumerate(self.complete(prefixes, budgets[-1], True, made.sampling)):
            size = self.tokens.first_end(one.tokens, True)
            made.thinkings[row], made.logprobs[row] = [*one.tokens[:size]], [*one.logprobs[:size]]
            made.ends[row] = self.tokens.end(one.tokens[:size])
            if not made.ends[row] and size < budgets[-1]:
                raise RuntimeError(STOPPED.format(size, budgets[-1]))
        return self._trees(made, budgets, num_summaries, share_cuts)

    def _trees(
        self, made: Thinkings, budgets: tuple[int, ...], num_summaries: int, share_cuts: bool
    ) -> list[Tree]:
        """Thinkings as they stand, with their summaries."""
        kept = [self.tokens.kept(thinking) for thinking in made.thinkings]
        places = [[min(budget, length) for budget in budgets] for length in kept]
        asked = [list(dict.fromkeys(own) if share_cuts else own) for own in places]
        trees: list[Tree] = []
        for row, found in enumerate(self._leaves(made, asked, num_summaries)):
            if share_cuts:
                found = [found[asked[row].index(cut)] for cut in places[row]]
            thinking, logprobs = tuple(made.thinkings[row]), tuple(made.logprobs[row])
            end, leaves = made.ends[row] or "length", tuple(chain(*found))
            trees.append(Tree(made.prompts[row], thinking, logprobs, end, leaves))
        return trees

    def _leaves(
        self, made: Thinkings, places: list[list[int]], count: int
    ) -> list[list[list[Leaf]]]:
        """Sample `count` summaries at each of the places of each thinking (tokens kept there)."""
        tokens, sampling, stands, prefixes = self.tokens, made.sampling, [], []
        # Greedy summaries of a cut are all the same, and vLLM refuses to sample them twice.
        drawn = count if sampling.temperature > 0 else 1
        for row, own in enumerate(places):
            thinking, end = made.thinkings[row], made.ends[row] or "length"
            for number, cut in enumerate(own):
                forced = tokens.forced(end, cut, tokens.kept(thinking))
                ids = (*made.prompts[row], *thinking[:cut], *forced)
                prefixes.append(Prefix(ids, drawn, derived_seed(made.seed, row, f"cut {number}")))
                stands.append((cut, forced))
        asked = sampling.max_summary_tokens, False, sampling
        found = (
            chain.from_iterable(self.ask(one, *asked) for one in prefixes)
            if made.watched
            else self.complete(prefixes, *asked)
        )
        told = iter(found)
        leaves = iter(
            [summary_leaf(tokens, *stand, next(told)) for _ in range(drawn)] * (count // drawn)
            for stand in stands
        )
        return [[next(leaves) for _ in own] for own in places]

    # A thinking that goes on by a token and is asked in between.

    def think(self, prompt: Sequence[int], sampling: Sampling, seed: int | None = None) -> Any:
        """Begin one thinking, to go on with `step` and branch off by `answers`."""
        thinking = Thinkings([prompt], sampling, seed)
        thinking.watched = True
        return thinking

    def step(self, thinking: Any, most: int = AHEAD) -> tuple[int, str]:
        """Think one more token; with a seed it is the same however often the thinking is asked.

        Args:
            thinking: What `think` gave.
            most: Tokens that it may still grow by.

        Returns:
            The token, and how the thinking ends with it (`ThinkingTokens.end`).
        """
        (ids,) = thinking.thinkings
        if not thinking.ahead:
            seed = None if thinking.seed is None else (thinking.seed + len(ids)) % 2**31
            prefix = Prefix((*thinking.prompts[0], *ids), 1, seed)
            (made,) = self.ask(prefix, min(most, AHEAD), True, thinking.sampling)
            if not made.tokens:
                raise RuntimeError(STOPPED.format(len(ids), "more"))
            thinking.ahead += made.tokens
        ids.append(thinking.ahead.pop(0))
        thinking.ends[0] = self.tokens.end(ids)
        return ids[-1], thinking.ends[0]

    def answers(self, thinking: Any, count: int, seed: int | None = None) -> list[Leaf]:
        """Sample `count` summaries of a thinking as it stands; it goes on as if never asked.

        With a seed they depend on nothing else. At temperature 0 they are all alike.
        """
        asked = copy.copy(thinking)
        asked.seed = seed
        return self._leaves(asked, [[self.tokens.kept(thinking.thinkings[0])]], count)[0][0]


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
