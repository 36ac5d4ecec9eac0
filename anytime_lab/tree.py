"""A rollout tree: one thinking (the trunk) and the summaries (leaves) that branch off it.

In training a tree is one row: `[prompt | trunk | forced + summary | forced + summary | …]`. Two
ints per token say the rest: `leaf` (-1 on the trunk, -2 on padding) and `branch` (tokens of the
trunk below a token: its own place on the trunk, the cut on a leaf). The forced text is repeated in
each leaf, so the token before every trained token is the previous position and a plain label shift
stays right, but for the first token of a leaf, which is forced and never trained.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

TRUNK, PADDING = -1, -2  # values of `leaf` that are no leaf number


@dataclass(frozen=True)
class Leaf:
    """A summary at one budget.

    Attributes:
        cut: Thinking tokens it stands on, min(budget, |z|).
        forced: Inserted tokens (cut suffix and header); never trained.
        summary: Sampled tokens, its EOS included where it was sampled.
        logprobs: Log-prob of each sampled token, in nats.
        finished: Whether the summary ended by itself.
    """

    cut: int
    forced: tuple[int, ...]
    summary: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool


@dataclass(frozen=True)
class Tree:
    """One rollout.

    Attributes:
        prompt: Token ids up to and including the think-open marker.
        thinking: Sampled tokens z, the think-end marker (or EOS) included where it was sampled.
        logprobs: Log-prob of each thinking token, in nats.
        end: `closed` (think-end marker), `eos` (EOS inside the thinking) or `length` (budget b_m).
        leaves: J·S leaves, budget by budget: leaf j·S + s.
    """

    prompt: tuple[int, ...]
    thinking: tuple[int, ...]
    logprobs: tuple[float, ...]
    end: str
    leaves: tuple[Leaf, ...]


@dataclass(frozen=True)
class PackedTree:
    """A tree as one row after its prompt; lists of C: the trunk, then forced + summary per leaf.

    Attributes:
        ids: Token ids.
        trained: 1 on sampled tokens, 0 on forced ones.
        logprobs: Log-prob under the sampler; 0 on forced tokens.
        branch: Trunk tokens below: t on trunk token t, the cut on a leaf.
        leaf: -1 on the trunk, else the leaf's number.
    """

    ids: list[int]
    trained: list[int]
    logprobs: list[float]
    branch: list[int]
    leaf: list[int]


def pack(tree: Tree) -> PackedTree:
    """Lay a tree out as one row."""
    length = len(tree.thinking)
    ids, logprobs = list(tree.thinking), list(tree.logprobs)
    trained, branch, leaf = [1] * length, list(range(length)), [TRUNK] * length
    for number, one in enumerate(tree.leaves):
        forced, sampled = len(one.forced), len(one.summary)
        ids += [*one.forced, *one.summary]
        logprobs += [0.0] * forced + list(one.logprobs)
        trained += [0] * forced + [1] * sampled
        branch += [one.cut] * (forced + sampled)
        leaf += [number] * (forced + sampled)
    return PackedTree(ids, trained, logprobs, branch, leaf)


def _check_layout(leaf: Tensor, branch: Tensor, prompt_mask: Tensor) -> None:
    if leaf.ndim != 2 or leaf.shape != branch.shape or prompt_mask.shape[:1] != leaf.shape[:1]:
        raise ValueError(
            f"leaf {tuple(leaf.shape)}, branch {tuple(branch.shape)}, prompt_mask "
            f"{tuple(prompt_mask.shape)}; expected (B, C), (B, C) and (B, Q)."
        )


def tree_positions(leaf: Tensor, branch: Tensor, prompt_mask: Tensor) -> Tensor:
    """Position ids of packed rows: a leaf goes on from its branch point.

    Args:
        leaf: (B, C) leaf number, -1 on the trunk, -2 on padding.
        branch: (B, C) trunk tokens below.
        prompt_mask: (B, Q), 1 on tokens of the left-padded prompts.

    Returns:
        (B, Q + C); 0 on padding.
    """
    _check_layout(leaf, branch, prompt_mask)
    prompt = (prompt_mask.long().cumsum(dim=1) - 1).clamp(min=0)
    columns = torch.arange(leaf.shape[1], device=leaf.device).expand_as(leaf)
    starts = leaf.diff(dim=1, prepend=leaf[:, :1]) != 0
    first = torch.where(starts, columns, 0).cummax(dim=1).values  # of the token's leaf
    inside = torch.where(leaf >= 0, branch + columns - first, branch)
    completion = prompt_mask.long().sum(dim=1, keepdim=True) + inside
    return torch.cat([prompt, completion.masked_fill(leaf == PADDING, 0)], dim=1)


def tree_mask(leaf: Tensor, branch: Tensor, prompt_mask: Tensor, last: int | None = None) -> Tensor:
    """Who attends to whom in packed rows: the dense oracle.

    A trunk token sees the prompt and the trunk up to itself; a leaf token sees the prompt, the
    trunk up to its cut and its own leaf up to itself. Padding sees itself only, so that no row of
    the softmax is empty.

    Args:
        leaf: (B, C).
        branch: (B, C).
        prompt_mask: (B, Q).
        last: Rows wanted, those at the end; all Q + C if None.

    Returns:
        (B, 1, Q + C, Q + C) bool, True where the row's token sees the column's.
    """
    _check_layout(leaf, branch, prompt_mask)
    batch, prompt = prompt_mask.shape
    total = prompt + leaf.shape[1]
    index = torch.arange(total, device=leaf.device)
    # The prompt is trunk, too: its places are below 0, so that every cut lies above them.
    place = torch.cat([index[:prompt].expand(batch, -1) - prompt, branch], dim=1)
    kind = torch.cat([torch.where(prompt_mask.bool(), TRUNK, PADDING), leaf], dim=1)
    first = 0 if last is None else total - last
    own, at = kind[:, first:, None], place[:, first:, None]
    below = place[:, None, :] < at + (own == TRUNK)
    same_leaf = (own == kind[:, None, :]) & (own >= 0)
    on_trunk = (kind == TRUNK)[:, None, :] & below & (own != PADDING)
    sees = (index[first:, None] >= index) & (on_trunk | same_leaf)
    return (sees | (index[first:, None] == index))[:, None]


class UnrolledRows(NamedTuple):
    """Packed rows taken apart: one row for each leaf, for models that cannot attend over trees.

    Attributes:
        ids: (N, L) right-padded token ids; row = prompt + trunk up to the cut + leaf.
        mask: (N, L) 1 on tokens.
        source: (N, L) where a token's log-prob is read back to, as b·C + c in the flat (B·C) packed
            columns; -1 where it is not (prompt, padding, trunk tokens scored by another row).
    """

    ids: Tensor
    mask: Tensor
    source: Tensor


def unroll(
    prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, leaf: Tensor, branch: Tensor
) -> UnrolledRows:
    """One row per leaf of the packed rows; each packed token is scored in exactly one of them.

    A trunk token is scored by the row of the first leaf that stands on it; what no leaf stands on
    (a trunk without leaves) gets a row of its own.

    Args:
        prompt_ids: (B, Q) left-padded.
        prompt_mask: (B, Q).
        completion_ids: (B, C) packed trees.
        leaf: (B, C).
        branch: (B, C).
    """
    _check_layout(leaf, branch, prompt_mask)
    columns = leaf.shape[1]
    ids: list[Tensor] = []
    sources: list[Tensor] = []
    for b, (numbers, place) in enumerate(zip(leaf, branch, strict=True)):
        prompt, trunk = prompt_ids[b, prompt_mask[b].bool()], numbers == TRUNK
        own = numbers == numbers[numbers >= 0].unique_consecutive()[:, None]  # (leaves, C)
        on_leaves = trunk & (place < (place * own).amax(dim=1, keepdim=True))
        rows = torch.cat([own | on_leaves, trunk[None]])
        scored = rows & (rows.cumsum(dim=0) == 1)  # by the first row that holds a token
        for row, new in zip(rows[scored.any(dim=1)], scored[scored.any(dim=1)], strict=True):
            where = row.nonzero()[:, 0]
            ids.append(torch.cat([prompt, completion_ids[b, where]]))
            back = (b * columns + where).masked_fill(~new[where], -1)
            sources.append(torch.cat([torch.full_like(prompt, -1), back]))
    masks = [torch.ones_like(row) for row in ids]
    padded = functools.partial(pad_sequence, batch_first=True)
    return UnrolledRows(padded(ids), padded(masks), padded(sources, padding_value=-1))
