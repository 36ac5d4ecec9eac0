"""Tree attention as a transformers attention backend: causal SDPA on the trunk, then on each leaf.

A packed row is `[prompt | trunk | leaf 1 | leaf 2 | …]`. Dense attention over it spends most of its
work on pairs that do not see each other. Here the trunk is one causal call, and each segment of
leaves (those that branch off at the same cut in every row) one call over the trunk up to that cut
and the segment itself. Rows may differ in every length; prompts are padded on the left.

B rows, H heads, L = Q + C row length (prompt and completion), D head size.
"""

import contextlib
import inspect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from anytime_lab.tree import PADDING, TRUNK

BACKEND = "anytime_tree"
RUN = 32  # columns that attend in one call, where many branch off a cache


class PlanLostError(RuntimeError):
    """The plan of a tree did not reach the attention that it is for."""


@dataclass(frozen=True)
class TreePlan:
    """How packed rows are cut into attention calls; the same for all layers.

    Attributes:
        trunk: Columns of the longest prompt and trunk.
        trunk_mask: What is added to scores, (B, 1, trunk, trunk), or None where no prompt is
            padded: causal then.
        segments: What is added to those of leaves that branch off at the same budget in every row,
            (B, 1, n, prefix + n). The prefix is the longest trunk below them, prompt included; n
            their tokens in a row, at most.
        leaves: (B, sum of n) columns of the segments' tokens; 0 where a row has fewer.
        order: (B, L) for each column its place in the calls' outputs, one after another.
    """

    trunk: int
    trunk_mask: Tensor | None
    segments: tuple[Tensor, ...]
    leaves: Tensor
    order: Tensor


class LeanRows(NamedTuple):
    """Which of the C columns of B packed rows a pass has to compute.

    Leaves of a cut share their forced text, so it is computed once; and nothing stands on a leaf's
    last token. A leaf n becomes two: 2n, its forced text, and 2n + 1, what was sampled.

    Attributes:
        fed: (B, C) whether the column is computed.
        stand: (B, C) the column that is computed in its place: itself, or one of an earlier leaf.
        leaf: (B, C) leaf number, doubled as above; -1 on the trunk, -2 on padding.
        stem: (B, C) number of the forced text that a column of a leaf stands on.
        bounds: Of the segments, in these numbers.
    """

    fed: Tensor
    stand: Tensor
    leaf: Tensor
    stem: Tensor
    bounds: list[tuple[int, int]]


def lean_rows(ids: Tensor, leaf: Tensor, branch: Tensor, trained: Tensor) -> LeanRows:
    """Find the columns to compute; all (B, C), `leaf` and `branch` as for `tree_plan`."""
    bounds = _segment_bounds(leaf, branch)
    segment_of = {n: first for first, last in bounds for n in range(first, last + 1)}
    told: tuple[list[list[int]], ...] = ([], [], [], [])
    for words, numbers, cuts, sampled in zip(
        ids.tolist(), leaf.tolist(), branch.tolist(), trained.tolist(), strict=True
    ):
        known: dict[tuple, tuple[int, list[int]]] = {}
        fed, stand, doubled, stems = made = [], [], [], []
        for number, run in itertools.groupby(range(len(numbers)), numbers.__getitem__):
            own = [*run]
            first, size = number, len(own)
            if number >= 0:
                first, size = 2 * number, next((n for n in range(size) if sampled[own[n]]), size)
            forced, said = own[:size], own[size:]
            key = segment_of.get(number), cuts[own[0]], *(words[at] for at in forced)
            stem, same = known.setdefault(key, (first, forced))
            new = same is forced and number != PADDING
            fed += [new] * size + [at != own[-1] for at in said]
            stand += same + said
            doubled += [first] * size + [first + 1] * len(said)
            stems += [stem] * len(own)
        for rows, row in zip(told, made, strict=True):
            rows.append(row)
    fed, *rest = (torch.tensor(rows, device=leaf.device) for rows in told)
    return LeanRows(fed.bool(), *rest, [(2 * first, 2 * last + 1) for first, last in bounds])


def tree_plan(
    leaf: Tensor,
    branch: Tensor,
    prompt_mask: Tensor,
    dtype: torch.dtype = torch.float32,
    stem: Tensor | None = None,
    bounds: list[tuple[int, int]] | None = None,
) -> TreePlan:
    """Plan the attention of packed rows.

    Args:
        leaf: (B, C) leaf number, -1 on the trunk, -2 on padding.
        branch: (B, C) trunk tokens below; a leaf's cut.
        prompt_mask: (B, Q), 1 on the tokens of left-padded prompts.
        dtype: Of the model.
        stem: (B, C) another leaf that a leaf's token sees; None where there is none.
        bounds: First and last leaf of each segment, where known.
    """
    stem = leaf if stem is None else stem
    batch, prompt = prompt_mask.shape
    device = leaf.device
    trunk = prompt + int((leaf == TRUNK).sum(1).max())
    # A shorter trunk is followed by leaf tokens; what the causal call makes of them is never read.
    order = torch.arange(prompt + leaf.shape[1], device=device).clamp(max=trunk - 1)
    order = order.repeat(batch, 1)
    trunk_mask = None
    if not prompt_mask.all():
        own = torch.eye(trunk, dtype=torch.bool, device=device)  # no row of a softmax is empty
        real = pad(prompt_mask.bool(), (0, trunk - prompt), value=True)
        trunk_mask = added_mask(torch.ones_like(own).tril() & real[:, None] | own, dtype)
    segments, tokens = [], [leaf.new_zeros(batch, 0)]
    offset = trunk
    for first, last in _segment_bounds(leaf, branch) if bounds is None else bounds:
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
        other = torch.where(real, stem.gather(1, columns), PADDING)
        own = number[:, None, :] == torch.stack([number, other])[..., None]  # (2, B, n, n)
        own = own.any(0).tril()  # padding's own is never read
        segments.append(added_mask(torch.cat([below, own], dim=2), dtype))
        tokens.append(torch.where(real, columns + prompt, 0))
        rows, places = real.nonzero(as_tuple=True)
        order[rows, prompt + columns[rows, places]] = offset + places
        offset += count
    return TreePlan(trunk, trunk_mask, tuple(segments), torch.cat(tokens, dim=1), order)


def _segment_bounds(leaf: Tensor, branch: Tensor) -> list[tuple[int, int]]:
    """Runs of leaf numbers with the same cut in every row, as (first, last); the fewest such."""
    # (n, m): neighbours in a row with different cuts, so that a run begins in n + 1 … m
    changes: set[tuple[int, int]] = set()
    for numbers, cuts in zip(leaf.tolist(), branch.tolist(), strict=True):
        on_leaf = [(n, cut) for n, cut in zip(numbers, cuts, strict=True) if n >= 0]
        changes |= {(n, m) for (n, cut), (m, other) in itertools.pairwise(on_leaf) if cut != other}
    starts = [0]
    for before, number in sorted(changes, key=lambda pair: pair[1]):
        if starts[-1] <= before:
            starts.append(number)
    last = int(leaf.max())
    runs = zip(starts, [*(s - 1 for s in starts[1:]), last], strict=True)
    return [(first, end) for first, end in runs if bool(((leaf >= first) & (leaf <= end)).any())]


@dataclass(frozen=True)
class BranchPlan:
    """How columns that branch off a cache are cut into attention calls; the same for all layers.

    Neighbours branch off at like cuts: they see the trunk up to the last of these, and of what lies
    behind it their own.

    Attributes:
        mask: Who sees whom (R, 1, N, K), for layers that do not go by runs.
        prefix: The longest part of the trunk that any sees.
        own: What the columns of each run see behind the trunk, (R, sum of m).
        sizes: The m of each.
        masks: What is added to the scores of a run of n, (R, 1, n, m + prefix).
    """

    mask: Tensor
    prefix: int
    own: Tensor
    sizes: list[int]
    masks: list[Tensor]


def branch_plan(sees: Tensor, trunk: int, dtype: torch.dtype, run: int = RUN) -> BranchPlan:
    """Plan the attention of N columns on a cache.

    Args:
        sees: (R, N, K) who sees whom.
        trunk: Columns of the cache, prompt included, that hold the trunk.
        dtype: Of the model.
        run: Columns of a call.
    """
    parts = sees.split(run, dim=1)
    below = torch.stack([part[:, :, :trunk].any(1).any(0) for part in parts])  # (parts, trunk)
    ends = (below * torch.arange(1, trunk + 1, device=sees.device)).amax(1).tolist()
    own, masks = [], []
    for part, prefix in zip(parts, ends, strict=True):
        # Where a row sees fewer than others, columns that it does not see fill it up.
        order, _ = first_columns(part[:, :, trunk:].any(1))
        own.append(order + trunk)
        mine = part.gather(2, own[-1][:, None].expand(-1, part.shape[1], -1))
        masks.append(added_mask(torch.cat([mine, part[:, :, :prefix]], dim=2), dtype))
    sizes = [columns.shape[1] for columns in own]
    return BranchPlan(sees[:, None], max(ends), torch.cat(own, 1), sizes, masks)


def added_mask(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """Who sees whom (B, N, T) as it is added to scores, (B, 1, N, T): layers would make it anew."""
    none = torch.zeros_like(sees, dtype=dtype)
    return none.masked_fill_(~sees, torch.finfo(dtype).min)[:, None]


def first_columns(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The chosen columns (B, C) of each row in order (B, M), and which of the M are any (B, M)."""
    counts = chosen.sum(1)
    order = (~chosen).to(torch.int8).argsort(dim=1, stable=True)[:, : int(counts.max())]
    return order, torch.arange(order.shape[1], device=order.device) < counts[:, None]


@contextlib.contextmanager
def branching(model: PreTrainedModel) -> Iterator[bool]:
    """Whether the model's attention goes by a `BranchPlan`; SDPA is made to until this ends."""
    chosen = model.config._attn_implementation
    known = inspect.signature(model.forward).parameters.values()
    takes = any(one.kind is one.VAR_KEYWORD for one in known)
    if chosen == "sdpa":
        model.config._attn_implementation = BACKEND
    try:
        yield takes and chosen in ("sdpa", BACKEND)
    finally:
        if chosen == "sdpa":
            model.config._attn_implementation = chosen


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
    tree: TreePlan | BranchPlan | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """The attention function: over trees where a plan is given, else transformers' own SDPA.

    Raises:
        PlanLostError: the model dropped the plan on the way.
    """
    if isinstance(tree, BranchPlan):
        # A layer that has made another mask, or biases its scores, goes by those.
        tree = tree if attention_mask is tree.mask and kwargs.get("position_bias") is None else None
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
    if query.device.type != "cpu":  # elsewhere the quick kernels take no groups beside a mask
        key, value, groups = repeat_kv(key, groups), repeat_kv(value, groups), 1

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        told = {"is_causal": True} if mask is None else {"attn_mask": mask.to(query.dtype)}
        told |= {"scale": scaling, "dropout_p": dropout, "enable_gqa": groups > 1}
        return scaled_dot_product_attention(query, key, value, **told)

    if isinstance(tree, BranchPlan):
        asks = query.split([mask.shape[2] for mask in tree.masks], dim=2)
        own = (_take(states, tree.own).split(tree.sizes, dim=2) for states in (key, value))
        # The trunk is copied once, behind room for what a run sees beside it.
        room, parts = max(tree.sizes), []
        held = [pad(states[:, :, : tree.prefix], (0, 0, room, 0)) for states in (key, value)]
        for mask, mine, size, *new in zip(tree.masks, asks, tree.sizes, *own, strict=True):
            seen = [states[:, :, room - size : room - size + mask.shape[3]] for states in held]
            for states, columns in zip(seen, new, strict=True):
                states[:, :, :size] = columns
            parts.append(attend(mine, *seen, mask))
        return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None
    trunk = [states[:, :, : tree.trunk] for states in (query, key, value)]
    parts = [attend(*trunk, tree.trunk_mask)]
    # One gather for all segments: the backward of each is a whole of zeros.
    sizes = [mask.shape[2] for mask in tree.segments]
    own = (_take(states, tree.leaves).split(sizes, dim=2) for states in (query, key, value))
    for mask, asks, *held in zip(tree.segments, *own, strict=True):
        prefix = mask.shape[3] - mask.shape[2]
        below = (states[:, :, :prefix] for states in trunk[1:])
        seen = (torch.cat(pair, dim=2) for pair in zip(below, held, strict=True))
        parts.append(attend(asks, *seen, mask))
    return _take(torch.cat(parts, dim=2), tree.order).transpose(1, 2).contiguous(), None


AttentionInterface.register(BACKEND, tree_attention_forward)
AttentionMaskInterface.register(BACKEND, sdpa_mask)
