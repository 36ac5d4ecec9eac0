"""Rollout trees as the trainer's rows: packed layout, leaf texts, and what is counted on a tree."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anytime_lab.tree import PADDING, PackedTree, Tree

ENDS = ("closed", "eos", "length")  # how a thinking ended; the order is the code in tensors


@dataclass(frozen=True)
class TreeRows:
    """Layout of B packed rows after their prompts, padded to C columns.

    Attributes:
        leaf: (B, C) leaf number; -1 on the trunk, -2 on padding.
        branch: (B, C) tokens of the trunk that a token stands on: its cut, or its own place.
        trained: (B, C) 1 on sampled tokens, 0 on forced ones and padding.
    """

    leaf: Tensor
    branch: Tensor
    trained: Tensor

    def rows(self, start: int, end: int) -> "TreeRows":
        """The rows start … end - 1."""
        return TreeRows(self.leaf[start:end], self.branch[start:end], self.trained[start:end])


def stack_rows(
    packed: Sequence[PackedTree], device: torch.device, multiple_of: int | None = None
) -> TreeRows:
    """Pad the layouts of packed trees to a common length.

    Args:
        packed: B trees.
        device: where the tensors are made.
        multiple_of: C becomes a multiple of this, as TRL pads completions.
    """
    length = max(len(tree.ids) for tree in packed)
    if multiple_of:
        length = -(-length // multiple_of) * multiple_of

    def padded(rows: list[Sequence[int]], value: int) -> Tensor:
        return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows], device=device)

    return TreeRows(
        leaf=padded([tree.leaf for tree in packed], PADDING),
        branch=padded([tree.branch for tree in packed], 0),
        trained=padded([tree.trained for tree in packed], 0),
    )


def leaf_token_ids(trees: Sequence[Tree]) -> list[list[int]]:
    """Thinking as cut, forced text and summary of every leaf; tree by tree, budget-major."""
    return [
        [*tree.thinking[: leaf.cut], *leaf.forced, *leaf.summary]
        for tree in trees
        for leaf in tree.leaves
    ]


def leaf_texts(token_ids: Sequence[Sequence[int]], tokenizer, unseen: frozenset[int]) -> list[str]:
    """Decode leaves; special tokens stay, `unseen` ones (EOS and padding) are left out.

    Equal leaves are decoded once: near the end of training most summaries of a cut agree.
    """
    keys = [tuple(t for t in ids if t not in unseen) for ids in token_ids]
    distinct = list(dict.fromkeys(keys))
    texts = tokenizer.batch_decode([list(key) for key in distinct], skip_special_tokens=False)
    decoded = dict(zip(distinct, texts, strict=True))
    return [decoded[key] for key in keys]


@dataclass(frozen=True)
class TreeNumbers:
    """What is counted on N trees; gathered over processes as one tensor.

    Attributes:
        lengths: (N,) tokens of thinking.
        ends: (N,) index into ENDS.
        cuts: (N, J) tokens of thinking that the summaries at a budget stand on.
        formatted: (N, J, S) 1 where exactly one think-end marker stands in thinking and summary.
        finished: (N, J, S) 1 where the summary ended by itself.
        summary_tokens: (N, J, S) sampled tokens.
    """

    lengths: Tensor
    ends: Tensor
    cuts: Tensor
    formatted: Tensor
    finished: Tensor
    summary_tokens: Tensor

    def flat(self) -> Tensor:
        """(N, 2 + J + 3 J S), to gather."""
        parts = [self.lengths[:, None], self.ends[:, None], self.cuts]
        parts += [t.flatten(1) for t in (self.formatted, self.finished, self.summary_tokens)]
        return torch.cat(parts, dim=1)

    @classmethod
    def from_flat(cls, flat: Tensor, num_budgets: int, num_summaries: int) -> "TreeNumbers":
        """Undo `flat`."""
        leaves = num_budgets * num_summaries
        sizes = [1, 1, num_budgets, leaves, leaves, leaves]
        lengths, ends, cuts, *per_leaf = flat.split(sizes, dim=1)
        shape = (-1, num_budgets, num_summaries)
        return cls(lengths[:, 0], ends[:, 0], cuts, *(t.reshape(shape) for t in per_leaf))


def count_trees(
    trees: Sequence[Tree], close_id: int, num_budgets: int, num_summaries: int, device
) -> TreeNumbers:
    """Count on each tree what the scores and the metrics need."""
    rows = []
    for tree in trees:
        # The marker can stand in a thinking as its last token only: sampling stops there.
        last = len(tree.thinking) if close_id in tree.thinking else None
        formatted = [
            (leaf.cut == last) + leaf.forced.count(close_id) + leaf.summary.count(close_id) == 1
            for leaf in tree.leaves
        ]
        cuts = [leaf.cut for leaf in tree.leaves[::num_summaries]]
        rows.append(
            [len(tree.thinking), ENDS.index(tree.end), *cuts, *formatted]
            + [leaf.finished for leaf in tree.leaves]
            + [len(leaf.summary) for leaf in tree.leaves]
        )
    flat = torch.tensor(rows, dtype=torch.int64, device=device)
    return TreeNumbers.from_flat(flat, num_budgets, num_summaries)
