"""Trees from an engine that completes token prefixes: thinkings first, then the summaries.

Nothing stands between the two phases, so an engine with a prefix cache computes no prefix twice.
What completes the prefixes is a function, so that a library, a server and TRL's vLLM share this.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from anytime_lab.engines.base import Sampling
from anytime_lab.priors import check_budgets
from anytime_lab.prompts import ThinkingTokens
from anytime_lab.tree import Leaf, Tree, cuts


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


# Prefixes, most tokens to sample, tokens to stop at → for each prefix its `count` continuations.
Complete = Callable[[list[Prefix], int, frozenset[int]], list[list[Continuation]]]


def check_request(
    prompts: Sequence[Sequence[int]], budgets: Sequence[int], num_summaries: int
) -> Sequence[int]:
    """The budgets of a call of `Engine.sample_trees`.

    Raises:
        ValueError: budgets, number of summaries or a prompt cannot be sampled from.
    """
    budgets = check_budgets(budgets)
    if num_summaries < 1:
        raise ValueError(f"num_summaries is {num_summaries}; expected at least 1.")
    if any(not prompt for prompt in prompts):
        raise ValueError("a prompt is empty; expected at least the think-open marker.")
    return budgets


def sample_trees_in_two_phases(
    complete: Complete,
    tokens: ThinkingTokens,
    prompts: Sequence[Sequence[int]],
    budgets: Sequence[int],
    num_summaries: int,
    sampling: Sampling,
    seed: int | None = None,
    share_cuts: bool = False,
) -> list[Tree]:
    """As `Engine.sample_trees`, every token sampled by `complete`.

    A thinking's randomness comes from the seed and its row, a summary's from the seed, its row and
    its budget: which prefixes travel together changes nothing.

    Args:
        complete: Continues prefixes as `sampling` says.
    """
    budgets = check_request(prompts, budgets, num_summaries)
    if not prompts:
        return []
    stops = frozenset({tokens.close_id, *tokens.eos_ids})
    wanted = [
        Prefix(tuple(prompt), 1, _derived(seed, row, "thinking"))
        for row, prompt in enumerate(prompts)
    ]
    thinkings = [made[0] for made in complete(wanted, budgets[-1], stops)]
    trunks = [
        (prompt.ids, thinking, _end(thinking.tokens, budgets[-1], tokens))
        for prompt, thinking in zip(wanted, thinkings, strict=True)
    ]
    # Greedy summaries of a cut are all the same, and vLLM refuses to sample them twice.
    count = num_summaries if sampling.temperature > 0 else 1
    places: list[list[int]] = []  # for each row and budget the prefix that its summaries go on from
    prefixes: list[Prefix] = []
    for row, (prompt, thinking, end) in enumerate(trunks):
        length, seen, own = len(thinking.tokens), {}, []
        for budget, cut in enumerate(cuts(length, budgets)):
            if not share_cuts or cut not in seen:
                seen[cut] = len(prefixes)
                ids = (*prompt, *thinking.tokens[:cut], *tokens.forced(end, cut, length))
                prefixes.append(Prefix(ids, count, _derived(seed, row, f"cut {budget}")))
            own.append(seen[cut])
        places.append(own)
    summaries = complete(prefixes, sampling.max_summary_tokens, tokens.eos_ids)
    trees = []
    for (prompt, thinking, end), own in zip(trunks, places, strict=True):
        length = len(thinking.tokens)
        leaves = tuple(
            Leaf(
                cut=cut,
                forced=tokens.forced(end, cut, length),
                summary=made.tokens,
                logprobs=made.logprobs,
                finished=made.tokens[-1] in tokens.eos_ids,
            )
            for cut, place in zip(cuts(length, budgets), own, strict=True)
            for made in summaries[place] * (num_summaries // count)
        )
        trees.append(Tree(prompt, thinking.tokens, thinking.logprobs, end, leaves))
    return trees


def _derived(seed: int | None, row: int, what: str) -> int | None:
    """A seed for one prefix; 32 bits, which every engine takes, n continuations use n in a row."""
    if seed is None:
        return None
    digest = hashlib.sha256(f"anytime_lab {seed} {row} {what}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 2


def _end(thinking: Sequence[int], limit: int, tokens: ThinkingTokens) -> str:
    if thinking[-1] == tokens.close_id:
        return "closed"
    if thinking[-1] in tokens.eos_ids:
        return "eos"
    if len(thinking) < limit:
        raise RuntimeError(
            f"the engine ended a thinking after {len(thinking)} of {limit} tokens without a stop "
            "token. Its context is too short, or it stops at tokens of its own: raise its context "
            "length (vLLM: max_model_len), and start it without extra stop tokens."
        )
    return "length"
