"""How tokens are drawn, and trees by completing prefixes, whatever completes them."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}; expected 0 (greedy) or more.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected above 0 and at most 1 (all).")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; expected 0 (all) or a count of tokens.")
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p is {self.min_p}; expected 0 (all) or more, below 1.")
        if self.max_summary_tokens < 1:
            raise ValueError(
                f"max_summary_tokens is {self.max_summary_tokens}; expected at least 1."
            )


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
    """Log-probs with -inf on the tokens that the filters leave out (top-k, min-p, then top-p)."""
    if sampling.top_k and sampling.top_k < logprobs.shape[-1]:
        smallest = logprobs.topk(sampling.top_k, dim=-1).values[..., -1:]
        logprobs = logprobs.masked_fill(logprobs < smallest, -torch.inf)
    if sampling.min_p > 0:
        smallest = logprobs.max(-1, keepdim=True).values + torch.tensor(sampling.min_p).log()
        logprobs = logprobs.masked_fill(logprobs < smallest, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logprobs.softmax(-1).sort(dim=-1, descending=True)
        above = ordered.cumsum(-1) - ordered  # probability of the likelier ones
        out = torch.zeros_like(above, dtype=torch.bool).scatter(-1, order, above >= sampling.top_p)
        logprobs = logprobs.masked_fill(out, -torch.inf)
    return logprobs


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
    """Sampled tokens, the stop token included where it was sampled, and their log-probs."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


class Engine(ABC):
    """Samples one tree for each prompt: two phases, of thinkings and of summaries on them.

    An engine says how prefixes are completed; one that can branch has a `sample_trees` of its own.

    Attributes:
        tokens: The thinking format in token ids.
    """

    tokens: ThinkingTokens

    @abstractmethod
    def complete(
        self, prefixes: list[Prefix], limit: int, thinks: bool, sampling: Sampling
    ) -> list[list[Continuation]]:
        """For each prefix its `count` continuations of at most `limit` tokens.

        A thinking goes on up to `stop_ids` or `stop_text` of the tokens, a summary up to their
        `eos_ids`; what comes after is cut off.
        """

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
        budgets, tokens = check_request(prompts, budgets, num_summaries), self.tokens
        if not prompts:
            return []
        wanted = [
            Prefix(tuple(prompt), 1, _derived(seed, row, "thinking"))
            for row, prompt in enumerate(prompts)
        ]
        made = self.complete(wanted, budgets[-1], True, sampling)
        trunks = [_trunk(one, budgets[-1], tokens) for (one,) in made]
        # Greedy summaries of a cut are all the same, and vLLM refuses to sample them twice.
        count = num_summaries if sampling.temperature > 0 else 1
        places: list[list[int]] = []  # for each row and budget the prefix that its summaries follow
        prefixes: list[Prefix] = []
        for row, (thinking, end) in enumerate(trunks):
            kept, seen, own = tokens.kept(thinking.tokens), {}, []
            for budget, cut in enumerate(cuts(kept, budgets)):
                if not share_cuts or cut not in seen:
                    seen[cut] = len(prefixes)
                    forced = tokens.forced(end, cut, kept)
                    ids = (*wanted[row].ids, *thinking.tokens[:cut], *forced)
                    prefixes.append(Prefix(ids, count, _derived(seed, row, f"cut {budget}")))
                own.append(seen[cut])
            places.append(own)
        summaries = self.complete(prefixes, sampling.max_summary_tokens, False, sampling)
        trees = []
        for prompt, (thinking, end), own in zip(wanted, trunks, places, strict=True):
            kept = tokens.kept(thinking.tokens)
            leaves = tuple(
                summary_leaf(tokens, cut, tokens.forced(end, cut, kept), one.tokens, one.logprobs)
                for cut, place in zip(cuts(kept, budgets), own, strict=True)
                for one in summaries[place] * (num_summaries // count)
            )
            trees.append(Tree(prompt.ids, thinking.tokens, thinking.logprobs, end, leaves))
        return trees


def check_request(
    prompts: Sequence[Sequence[int]], budgets: Sequence[int], num_summaries: int
) -> tuple[int, ...]:
    """The budgets of a call of `Engine.sample_trees`, which says what is refused."""
    budgets = check_budgets(budgets)
    if num_summaries < 1:
        raise ValueError(f"num_summaries is {num_summaries}; expected at least 1.")
    if any(not prompt for prompt in prompts):
        raise ValueError("a prompt is empty; expected at least the think-open marker.")
    return budgets


def summary_leaf(
    tokens: ThinkingTokens,
    cut: int,
    forced: tuple[int, ...],
    sampled: Sequence[int],
    logprobs: Sequence[float],
) -> Leaf:
    """A leaf of what was sampled after the forced text, up to the end of the turn."""
    size = tokens.first_end(sampled, False)
    finished = sampled[size - 1] in tokens.eos_ids
    return Leaf(cut, forced, tuple(sampled[:size]), tuple(logprobs[:size]), finished)


def _derived(seed: int | None, row: int, what: str) -> int | None:
    """A seed for one prefix; 32 bits, which every engine takes, n continuations use n in a row."""
    if seed is None:
        return None
    digest = hashlib.sha256(f"anytime_lab {seed} {row} {what}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 2


def _trunk(made: Continuation, limit: int, tokens: ThinkingTokens) -> tuple[Continuation, str]:
    """A thinking up to its end, and how it ended."""
    size = tokens.first_end(made.tokens, True)
    thinking = Continuation(made.tokens[:size], made.logprobs[:size])
    if end := tokens.end(thinking.tokens):
        return thinking, end
    if size < limit:
        raise RuntimeError(
            f"the engine ended a thinking after {size} of {limit} tokens without a stop token. Its "
            "context is too short, or it stops at tokens of its own: raise its context length "
            "(vLLM: max_model_len), and start it without extra stop tokens."
        )
    return thinking, "length"
