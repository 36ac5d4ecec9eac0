"""Packed trees against rows written out by hand."""

import pytest
import tiny
import torch

from anytime_lab.prompts import COUNTDOWN, resolve_tokens
from anytime_lab.train.scoring import stack_rows
from anytime_lab.tree import (
    PADDING,
    Leaf,
    Tree,
    pack,
    tree_mask,
    tree_positions,
    unroll,
)

TREE = Tree(
    prompt=(90, 91),
    thinking=(10, 11, 12),
    logprobs=(-0.1, -0.2, -0.3),
    end="length",
    leaves=(
        Leaf(cut=2, forced=(5, 6), summary=(20, 1), logprobs=(-1.0, -2.0), finished=True),
        Leaf(cut=3, forced=(5, 6), summary=(30,), logprobs=(-3.0,), finished=False),
    ),
)
LEAF = torch.tensor([[-1, -1, -1, 0, 0, 0, 0, 1, 1, 1, PADDING]])
BRANCH = torch.tensor([[0, 1, 2, 2, 2, 2, 2, 3, 3, 3, 0]])
PROMPT = torch.tensor([[0, 1, 1]])  # one place of padding on the left


def test_a_tree_packs_into_the_row_written_by_hand():
    row = pack(TREE)
    assert row.ids == [10, 11, 12, 5, 6, 20, 1, 5, 6, 30]
    assert row.trained == [1, 1, 1, 0, 0, 1, 1, 0, 0, 1]
    assert row.logprobs == [-0.1, -0.2, -0.3, 0, 0, -1.0, -2.0, 0, 0, -3.0]
    assert row.leaf == LEAF[0, :-1].tolist()
    assert row.branch == BRANCH[0, :-1].tolist()


def test_an_empty_thinking_packs_into_its_leaves():
    tree = Tree((7,), (), (), "length", (Leaf(0, (5,), (8,), (-1.0,), False),))
    row = pack(tree)
    assert (row.ids, row.branch, row.leaf) == ([5, 8], [0, 0], [0, 0])


def test_positions_go_on_from_the_branch_point():
    positions = tree_positions(LEAF, BRANCH, PROMPT)
    assert positions.tolist() == [[0, 0, 1, 2, 3, 4, 4, 5, 6, 7, 5, 6, 7, 0]]


def test_the_mask_is_the_one_drawn_by_hand():
    # p: padding, then two prompt tokens, three of trunk, four of leaf 0, three of leaf 1, padding
    drawn = [
        "x.............",
        ".x............",
        ".xx...........",
        ".xxx..........",
        ".xxxx.........",
        ".xxxxx........",
        ".xxxx.x.......",
        ".xxxx.xx......",
        ".xxxx.xxx.....",
        ".xxxx.xxxx....",
        ".xxxxx....x...",
        ".xxxxx....xx..",
        ".xxxxx....xxx.",
        ".............x",
    ]
    mask = tree_mask(LEAF, BRANCH, PROMPT)[0, 0]
    shown = ["".join("x" if seen else "." for seen in row) for row in mask]
    assert shown == drawn


def test_unrolled_rows_are_prompt_prefix_and_leaf_and_score_each_token_once():
    packed = torch.tensor([[*pack(TREE).ids, 0]])
    prompt = torch.tensor([[0, 90, 91]])
    rows = unroll(prompt, PROMPT, packed, LEAF, BRANCH)
    texts = [ids[mask.bool()].tolist() for ids, mask in zip(rows.ids, rows.mask, strict=True)]
    assert texts == [[90, 91, 10, 11, 5, 6, 20, 1], [90, 91, 10, 11, 12, 5, 6, 30]]
    sources = rows.source[rows.source >= 0].tolist()
    assert sorted(sources) == list(range(10))
    assert rows.ids[rows.source >= 0].tolist() == [packed[0, s].item() for s in sources]


def test_a_trunk_longer_than_every_cut_gets_a_row_of_its_own():
    leaf = torch.tensor([[-1, -1, -1, 0, 0]])
    branch = torch.tensor([[0, 1, 2, 1, 1]])
    rows = unroll(torch.tensor([[9]]), torch.ones(1, 1), torch.arange(5)[None], leaf, branch)
    texts = [ids[mask.bool()].tolist() for ids, mask in zip(rows.ids, rows.mask, strict=True)]
    assert texts == [[9, 0, 3, 4], [9, 0, 1, 2]]
    assert sorted(rows.source[rows.source >= 0].tolist()) == [0, 1, 2, 3, 4]


def test_rows_are_padded_to_the_longest_and_to_a_multiple():
    tokens = resolve_tokens(tiny.tokenizer(), COUNTDOWN)
    trees = tiny.random_trees([[7], [7, 8], [9], [7]], [4, 8], 2, tokens)
    packed = [pack(tree) for tree in trees]
    rows = stack_rows(packed, torch.device("cpu"), multiple_of=16)
    assert rows.leaf.shape[1] % 16 == 0
    for n, row in enumerate(packed):
        size = len(row.ids)
        assert rows.leaf[n, :size].tolist() == row.leaf
        assert (rows.leaf[n, size:] == PADDING).all()
        assert not rows.trained[n, size:].any()


def test_layouts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"expected \(B, C\)"):
        tree_positions(LEAF, BRANCH[:, :-1], PROMPT)
