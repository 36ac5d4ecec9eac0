"""Log-probs of packed rows by the backend that a model supports, in TRL's fused head."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anytime_lab.rollouts import PAD_LEAF, TreeRows
from anytime_lab.tree import tree_mask, tree_positions


@dataclass(frozen=True)
class ScoredRows:
    """Per-token numbers of B rows after their prompts, (B, C); 0 where nothing is trained."""

    log_probs: Tensor
    entropy: Tensor


def resolve_backend(model, name: str) -> str:
    return "dense"


def score_rows(model, backend, input_ids, attention_mask, rows: TreeRows) -> ScoredRows:
    columns = rows.leaf.shape[1]
    prompt_mask = attention_mask[:, :-columns]
    labels = torch.full_like(input_ids, -100)
    labels[:, -columns:] = input_ids[:, -columns:].masked_fill(rows.trained == 0, -100)
    out = model(
        input_ids=input_ids,
        attention_mask=tree_mask(rows.leaf, rows.branch, prompt_mask),
        position_ids=tree_positions(rows.leaf, rows.branch, prompt_mask),
        labels=labels,
        fused_lm_head=True,
    )
    # The reference model's head computes log-probs only.
    entropy = None if out.entropy is None else out.entropy[:, -columns:]
    return ScoredRows(out.log_probs[:, -columns:], entropy)


def trim_columns(inputs: dict[str, Any]) -> dict[str, Any]:
    """Cut the padding that no row of a micro-batch needs: left of prompts, right of trees.

    A generation is padded to its longest tree before it is shuffled and split.
    """
    prompt_start = int(inputs["prompt_mask"].any(dim=0).int().argmax())
    columns = inputs["completion_mask"].shape[1]
    used = int((inputs["tree_leaf"] != PAD_LEAF).any(dim=0).sum())
    trimmed = {}
    for key, value in inputs.items():
        if key in ("prompt_ids", "prompt_mask"):
            value = value[:, prompt_start:]
        elif isinstance(value, Tensor) and value.ndim == 2 and value.shape[1] == columns:
            value = value[:, :used]
        trimmed[key] = value
    return trimmed
