"""Trees by plain `generate`, one prefix at a time: for models whose cache cannot branch."""

import contextlib
import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from anytime_lab.priors import check_budgets
from anytime_lab.prompts import ThinkingTokens
from anytime_lab.tree import Leaf, Tree, cuts

logger = logging.getLogger(__name__)


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


class Engine(Protocol):
    """Samples one tree for each prompt."""

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

        Args:
            prompts: Token ids, think-open marker included. Repeat a prompt for several samples.
            budgets: Increasing numbers of thinking tokens.
            num_summaries: Summaries for each budget.
            sampling: How tokens are drawn.
            seed: Makes the result depend on nothing else; None takes the global random state.
            share_cuts: Let the budgets past the end of a thinking share their summaries, instead of
                sampling new ones. There are J·S leaves either way.
        """
        ...


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


def sample_trees_by_generate(
    model: PreTrainedModel,
    tokens: ThinkingTokens,
    prompts: Sequence[Sequence[int]],
    budgets: Sequence[int],
    num_summaries: int,
    sampling: Sampling,
    generator: torch.Generator | None,
    share_cuts: bool,
) -> list[Tree]:
    """As `Engine.sample_trees`, prefixes read anew for each cut."""
    with _seeded(model, generator), _no_defaults(model):
        batched = _generates_in_batches(model, tokens, max(prompts, key=len))
        thinkings = _generate(
            model, tokens, prompts, budgets[-1], sampling, {tokens.close_id, *tokens.eos_ids},
            batched,
        )  # fmt: skip
        ends = [_generated_end(ids, tokens) for ids, _ in thinkings]
        jobs: dict[tuple[int, int, int], Sequence[int]] = {}  # (row, cut or leaf, summary)
        for row, (prompt, (ids, _), end) in enumerate(zip(prompts, thinkings, ends, strict=True)):
            for j, cut in enumerate(cuts(len(ids), budgets)):
                for s in range(num_summaries):
                    key = (row, cut if share_cuts else j, s)
                    jobs.setdefault(key, [*prompt, *ids[:cut], *tokens.forced(end, cut, len(ids))])
        made = _generate(
            model, tokens, list(jobs.values()), sampling.max_summary_tokens, sampling,
            set(tokens.eos_ids), batched,
        )  # fmt: skip
        summaries = dict(zip(jobs, made, strict=True))
    trees = []
    for row, (prompt, (ids, logprobs), end) in enumerate(
        zip(prompts, thinkings, ends, strict=True)
    ):
        leaves = []
        for j, cut in enumerate(cuts(len(ids), budgets)):
            for s in range(num_summaries):
                summary, values = summaries[row, cut if share_cuts else j, s]
                leaves.append(
                    Leaf(
                        cut=cut,
                        forced=tokens.forced(end, cut, len(ids)),
                        summary=summary,
                        logprobs=values,
                        finished=summary[-1] in tokens.eos_ids,
                    )
                )
        trees.append(Tree(tuple(prompt), ids, logprobs, end, tuple(leaves)))
    return trees


def _generated_end(thinking: Sequence[int], tokens: ThinkingTokens) -> str:
    if thinking[-1] == tokens.close_id:
        return "closed"
    return "eos" if thinking[-1] in tokens.eos_ids else "length"


@contextlib.contextmanager
def _seeded(model: PreTrainedModel, generator: torch.Generator | None) -> Iterator[None]:
    # `generate` knows the global random state only: give it ours, and put its own back.
    if generator is None:
        yield
        return
    devices = [] if model.device.type == "cpu" else [model.device]
    with torch.random.fork_rng(devices=devices, device_type=model.device.type):
        seed = torch.randint(2**62, (1,), generator=generator, device=model.device)
        torch.manual_seed(int(seed))
        yield


@contextlib.contextmanager
def _no_defaults(model: PreTrainedModel) -> Iterator[None]:
    # A checkpoint's generation_config may hold penalties and filters, which `sampling` has not.
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    kept = [(holder, holder.generation_config) for holder in (inner, model)]
    for holder, _ in kept:
        holder.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for holder, config in kept:
            holder.generation_config = config


def _generate(
    model: PreTrainedModel,
    tokens: ThinkingTokens,
    prefixes: Sequence[Sequence[int]],
    limit: int,
    sampling: Sampling,
    stops: set[int],
    batched: bool = True,
) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Continue each prefix up to a stop token; tokens and log-probs as `sample_tokens` has them."""
    if not batched and len(prefixes) > 1:
        made = (_generate(model, tokens, [p], limit, sampling, stops, False) for p in prefixes)
        return [one for (one,) in made]
    ids, mask = _left_padded(model, tokens, prefixes)
    width = ids.shape[1]
    greedy = sampling.temperature == 0
    drawn = {} if greedy else {
        "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k,
        "min_p": sampling.min_p or None,
    }  # fmt: skip
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=limit,
        do_sample=not greedy,
        eos_token_id=sorted(stops),
        pad_token_id=tokens.pad_id,
        use_cache=batched,
        return_dict_in_generate=True,
        output_logits=True,
        **drawn,
    )
    new = out.sequences[:, width:]
    logits = torch.stack(out.logits, dim=1).float()
    logprobs = (logits if greedy else logits / sampling.temperature).log_softmax(-1)
    values = logprobs.gather(-1, new[..., None])[..., 0]
    return [_until_stop(row, value, stops) for row, value in zip(new, values, strict=True)]


def _left_padded(
    model: PreTrainedModel, tokens: ThinkingTokens, prefixes: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Ids and mask, (R, longest prefix)."""
    width, device = max(map(len, prefixes)), model.device
    ids = [[tokens.pad_id] * (width - len(p)) + [*p] for p in prefixes]
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in prefixes]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _generates_in_batches(
    model: PreTrainedModel, tokens: ThinkingTokens, prompt: Sequence[int]
) -> bool:
    """Whether `generate` on padded rows and a cache says what the model says of a row by itself.

    Tried on the first half of a prompt beside the whole, for a few tokens. RWKV takes padding
    for text and mixes the states of a batch; DeepSeek-V4 compresses blocks of columns.
    """
    rows = [prompt[: max(1, len(prompt) // 2)], prompt]
    ids, mask = _left_padded(model, tokens, rows)
    out = model.generate(
        input_ids=ids, attention_mask=mask, min_new_tokens=4, max_new_tokens=4, do_sample=False,
        pad_token_id=tokens.pad_id, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    padding = ids.shape[1] - len(rows[0])
    row = out.sequences[:1, padding:]
    plain = model(input_ids=row, use_cache=False).logits[0, len(rows[0]) - 1 : -1]
    told = torch.stack([logits[0] for logits in out.logits])
    apart = (plain.float().softmax(-1) - told.float().softmax(-1)).abs().sum(-1) / 2
    exact = bool(apart.max() < torch.finfo(model.dtype).eps ** 0.5)  # total variation
    if not exact:
        logger.warning(
            "%s generates something else in a batch, or on its cache, than for a row by itself: "
            "rows are sampled one by one without a cache, which is slow.",
            type(model).__name__,
        )
    return exact


def _until_stop(
    ids: Tensor, values: Tensor, stops: set[int]
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    listed = ids.tolist()
    stop = next((n for n, token in enumerate(listed) if token in stops), len(listed) - 1)
    return tuple(listed[: stop + 1]), tuple(values.tolist()[: stop + 1])
