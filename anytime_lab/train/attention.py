"""Tree attention as a transformers attention backend: causal SDPA on the trunk, then on each leaf.

A packed row is `[prompt | trunk | leaf 1 | leaf 2 | …]`. Dense attention over it spends most of its
work on pairs that do not see each other. Here the trunk is one causal call, and each segment of
leaves (those that branch off at the same cut in every row) one call over the trunk up to that cut
and the segment itself. Rows may differ in every length; prompts are padded on the left.

B rows, H heads, L = Q + C row length (prompt and completion), D head size.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from anytime_lab.tree import PADDING, TRUNK

BACKEND = "anytime_tree"


class PlanLostError(RuntimeError):
    """The plan of a tree did not reach the attention that it is for."""


@dataclass(frozen=True)
class Segment:
    """Leaves that branch off at the same budget in every row.

    Attributes:
        prefix: Columns of the trunk that the longest of its prefixes takes, prompt included.
        tokens: (B, n) columns of the segment's tokens; 0 where a row has fewer.
        mask: (B, 1, n, prefix + n) who sees whom.
    """

    prefix: int
    tokens: Tensor
    mask: Tensor


@dataclass(frozen=True)
class TreePlan:
    """How packed rows are cut into attention calls; the same for all layers.

    Attributes:
        trunk: Columns of the longest prompt and trunk.
        trunk_mask: (B, 1, trunk, trunk), or None where no prompt is padded: causal then.
        segments: The leaves.
        order: (B, L) for each column its place in the calls' outputs, one after another.
    """

    trunk: int
    trunk_mask: Tensor | None
    segments: tuple[Segment, ...]
    order: Tensor


def tree_plan(leaf: Tensor, branch: Tensor, prompt_mask: Tensor) -> TreePlan:
    """Plan the attention of packed rows.

    Args:
        leaf: (B, C) leaf number, -1 on the trunk, -2 on padding.
        branch: (B, C) trunk tokens below; a leaf's cut.
        prompt_mask: (B, Q), 1 on the tokens of left-padded prompts.
    """
    batch, prompt = prompt_mask.shape
    device = leaf.device
    trunk = prompt + int((leaf == TRUNK).sum(1).max())
    padded = not bool(prompt_mask.all())
    # A shorter trunk is followed by leaf tokens; what the causal call makes of them is never read.
    order = torch.arange(prompt + leaf.shape[1], device=device).clamp(max=trunk - 1)
    order = order.repeat(batch, 1)
    trunk_mask = None
    if padded:
        index = torch.arange(trunk, device=device)
        valid = torch.ones(batch, trunk, dtype=torch.bool, device=device)
        valid[:, :prompt] = prompt_mask.bool()
        seen = (index[:, None] >= index[None, :])[None] & valid[:, None]
        trunk_mask = (seen | torch.eye(trunk, dtype=torch.bool, device=device))[:, None]
    segments, offset = [], trunk
    for first, last in _segment_bounds(leaf, branch):
        inside = (leaf >= first) & (leaf <= last)
        sizes = inside.sum(1)
        count = int(sizes.max())
        # Leaves of a segment stand side by side: its columns are a run from the first one on.
        start = inside.int().argmax(1)
        place = torch.arange(count, device=device)
        real = place < sizes[:, None]
        columns = torch.where(real, start[:, None] + place, 0)
        number = torch.where(real, leaf.gather(1, columns), PADDING)
        cut = torch.where(real, branch.gather(1, columns), 0)
        prefix = prompt + int(cut.max())
        key = torch.arange(prefix, device=device)
        below = key < prompt + cut[..., None]  # (B, n, prefix)
        below[..., :prompt] &= prompt_mask.bool()[:, None]
        own = (number[:, :, None] == number[:, None, :]) & real[:, None, :]
        own &= place[:, None] >= place[None, :]
        own |= torch.eye(count, dtype=torch.bool, device=device)  # no row of a softmax is empty
        mask = torch.cat([below & real[..., None], own], dim=2)[:, None]
        segments.append(Segment(prefix, torch.where(real, columns + prompt, 0), mask))
        rows, places = real.nonzero(as_tuple=True)
        order[rows, prompt + columns[rows, places]] = offset + places
        offset += count
    return TreePlan(trunk, trunk_mask, tuple(segments), order)


def _segment_bounds(leaf: Tensor, branch: Tensor) -> list[tuple[int, int]]:
    """Runs of leaf numbers with the same cut in every row, as (first, last); the fewest such."""
    changes = (
        set()
    )  # (n, m): neighbours in a row with different cuts, so that a run begins in n+1…m
    for numbers, cuts in zip(leaf.tolist(), branch.tolist(), strict=True):
        places = [n for n, number in enumerate(numbers) if number >= 0]
        changes |= {
            (numbers[a], numbers[b]) for a, b in itertools.pairwise(places) if cuts[a] != cuts[b]
        }
    starts = [0]
    for before, number in sorted(changes, key=lambda pair: pair[1]):
        if starts[-1] <= before:
            starts.append(number)
    last = int(leaf.max())
    runs = zip(starts, [*(s - 1 for s in starts[1:]), last], strict=True)
    return [(first, end) for first, end in runs if bool(((leaf >= first) & (leaf <= end)).any())]


def _tree_attention(
    query: Tensor, key: Tensor, value: Tensor, plan: TreePlan, scale: float | None, dropout: float
) -> Tensor:
    """(B, H, L, D) from (B, H, L, D) queries and (B, H, L, D) keys and values."""
    end = plan.trunk
    parts = [
        scaled_dot_product_attention(
            query[:, :, :end],
            key[:, :, :end],
            value[:, :, :end],
            attn_mask=plan.trunk_mask,
            is_causal=plan.trunk_mask is None,
            scale=scale,
            dropout_p=dropout,
        )
    ]
    for segment in plan.segments:
        keys = torch.cat([key[:, :, : segment.prefix], _take(key, segment.tokens)], dim=2)
        values = torch.cat([value[:, :, : segment.prefix], _take(value, segment.tokens)], dim=2)
        parts.append(
            scaled_dot_product_attention(
                _take(query, segment.tokens),
                keys,
                values,
                attn_mask=segment.mask,
                scale=scale,
                dropout_p=dropout,
            )
        )
    return _take(torch.cat(parts, dim=2), plan.order)


def _take(states: Tensor, columns: Tensor) -> Tensor:
    """(B, H, n, D): the given columns (B, n) of (B, H, L, D)."""
    batch, heads, _, size = states.shape
    index = columns[:, None, :, None].expand(batch, heads, columns.shape[1], size)
    return states.gather(2, index)


def tree_attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    tree: TreePlan | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """The attention function: over trees where a plan is given, else transformers' own SDPA.

    Raises:
        PlanLostError: the model dropped the plan on the way.
    """
    if tree is None:
        if attention_mask is not None and attention_mask.shape[-1] == 1 < key.shape[2]:
            raise PlanLostError(
                f"{type(module).__name__} was not given the plan of the tree: its model does not "
                'pass keyword arguments on. Set tree_backend="unrolled".'
            )
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    out = _tree_attention(query, key, value, tree, scaling, dropout)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(BACKEND, tree_attention_forward)
AttentionMaskInterface.register(BACKEND, sdpa_mask)


def no_mask(rows: Tensor) -> Tensor:
    """A mask that models hand on as it is: the plan says who sees whom. (B, 1, 1, 1)."""
    return torch.ones(len(rows), 1, 1, 1, dtype=torch.bool, device=rows.device)


def why_not_trees(model: PreTrainedModel) -> str:
    """Why a model cannot attend over packed trees; empty where it can."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = inner.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        return f"its layers are {', '.join(sorted(kinds))}, not full attention only"
    if getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None):
        return "its attention has a sliding window"
    if not getattr(inner, "_supports_attention_backend", False):
        return f"{type(inner).__name__} does not use transformers' attention interface"
    return ""


def weights_are_here(model: PreTrainedModel) -> bool:
    """Whether the model can be tried: its weights are neither sharded nor yet to be loaded."""
    return not any(p.is_meta or not p.numel() or hasattr(p, "ds_id") for p in model.parameters())
