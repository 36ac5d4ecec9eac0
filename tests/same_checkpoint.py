"""Checkpoints and lines of metrics, equal to the last bit."""

import json

import torch
from safetensors.torch import load_file

TIMES = {"seconds"}


def lines(folder):
    """The lines of metrics without what the clock says."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if k not in TIMES and not k.startswith("time/")}
        for row in rows
    ]


def assert_same_tree(first, second):
    """Equal values bit by bit in nested containers of tensors."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same_tree(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same_tree(one, other)
    else:
        assert first == second


def assert_same_checkpoint(first, second):
    """Weights, optimizer and schedule, bit by bit."""
    assert_same_tree(
        load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    )
    assert_same_tree(torch.load(first / "scheduler.pt"), torch.load(second / "scheduler.pt"))
    paths = [*first.glob("optimizer.*"), *first.glob("global_step*/*_optim_states.pt")]
    assert paths
    for path in paths:
        states = [
            torch.load(folder / path.relative_to(first), weights_only=False)
            for folder in (first, second)
        ]
        for state in states:  # DeepSpeed's, in one of its classes
            state.get("optimizer_state_dict", {}).pop("loss_scaler", None)
            state.pop("ds_config", None)
        assert_same_tree(*states)
