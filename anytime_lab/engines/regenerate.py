"""Trees by plain `generate`, one prefix at a time: for models whose cache cannot branch."""

import contextlib
import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from anytime_lab.engines.base import Sampling
from anytime_lab.prompts import ThinkingTokens
from anytime_lab.tree import Leaf, Tree, cuts

logger = logging.getLogger(__name__)


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
        ends = [_end(ids, tokens) for ids, _ in thinkings]
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


def _end(thinking: Sequence[int], tokens: ThinkingTokens) -> str:
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
