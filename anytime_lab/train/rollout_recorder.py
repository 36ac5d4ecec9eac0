"""Writes some rollout trees of training to the run folder, with their credit token by token."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback

from anytime_lab.prompts import ThinkingTokens, decode, text_and_ends
from anytime_lab.store.rollout_records import drop_rollouts_after, write_rollouts
from anytime_lab.train.advantages import (
    BaselineMix,
    group_baseline,
    progress_baseline,
    returns,
    summary_advantages,
    thinking_advantages,
)
from anytime_lab.train.config import BRPOConfig
from anytime_lab.tree import Tree

PROBLEMS = 2  # whose trees are kept of a generation


def chosen_groups(scores: Tensor, prior: Tensor) -> list[int]:
    """The group whose returns vary most, which shows most, and the first other one.

    Args:
        scores: (P, G, J), NaN where nothing was scored.
        prior: (J,).
    """
    spread = returns(scores, prior).var(dim=1, correction=0).sum(-1)
    first = int(spread.argmax())
    others = [p for p in range(len(scores)) if p != first]
    return [first, *others][:PROBLEMS]


def credit(scores: Tensor, cuts: Tensor, args: BRPOConfig) -> dict[str, Tensor]:
    """What a rollout file says of credit, for whole groups.

    Args:
        scores: (P, G, J, S) of the summaries, NaN where the verifier abstained.
        cuts: (P, G, J) thinking tokens that they stand on.
        args: prior, discount, length penalty and baselines.

    Returns:
        Columns of ROLLOUT_SCHEMA: `summary_advantages` (P, G, J, S), all others (P, G, J).
    """
    leaf = args.penalised(scores, cuts)
    means = leaf.nanmean(dim=3)
    prior = means.new_tensor(args.budget_prior.weights)
    final = torch.zeros_like(prior)
    final[-1] = 1.0
    told = {
        "credited": means,
        "returns": returns(means, prior),
        "progress": progress_baseline(means, prior, args.discount),
        "group": group_baseline(means, prior),
        "summary_advantages": summary_advantages(
            leaf, cuts, means.new_tensor(args.summary_weights)
        ),
        "advantage_grpo": thinking_advantages(
            means, final, BaselineMix.group_only(len(prior)), args.discount
        ),
    }
    for name, mix in args.mixes.items():
        told[f"advantage_{name}"] = thinking_advantages(means, prior, mix, args.discount)
    return told


class RolloutRecorder(TrainerCallback):
    """Keeps the trees of two problems every `save_rollouts_steps` updates.

    Args:
        args: of the run.
        tokenizer: of the model.
        tokens: the thinking format in its ids.
    """

    def __init__(
        self, args: BRPOConfig, tokenizer: PreTrainedTokenizerBase, tokens: ThinkingTokens
    ):
        self.args, self.tokenizer, self.tokens = args, tokenizer, tokens
        self._step = 0  # the update that is under way
        self._writes = False

    def on_train_begin(self, args, state, control, **kwargs):
        """Drop the trees that will be written again."""
        self._writes = state.is_world_process_zero
        if self._writes:
            drop_rollouts_after(self.args.output_dir, state.global_step)

    def on_step_begin(self, args, state, control, **kwargs):
        """Remember which update samples."""
        self._step = state.global_step + 1

    def record(self, trees: Sequence[Tree], first: int, scores: Tensor, cuts: Tensor) -> None:
        """Write the trees of the chosen problems, if it is their turn. All processes call this.

        Args:
            trees: of this process.
            first: place of its first tree among those of all processes.
            scores: (N, J, S) of all processes' trees, before any length penalty.
            cuts: (N, J).
        """
        if not self._step or not self.args.saves_rollouts_at(self._step):
            return
        group = self.args.num_generations
        scores = scores.detach().double().cpu().unflatten(0, (-1, group))
        cuts = cuts.cpu().unflatten(0, (-1, group))
        told = credit(scores, cuts, self.args)
        prior = told["returns"].new_tensor(self.args.budget_prior.weights)
        chosen = chosen_groups(told["credited"], prior)
        numbers = {"scores": scores, "cuts": cuts, **told}
        rows = []
        for place, tree in enumerate(trees, start=first):
            problem, sample = divmod(place, group)
            if problem in chosen:
                credited = {
                    name: value[problem, sample].tolist() for name, value in numbers.items()
                }
                rows.append({"problem": problem, "sample": sample, **self._texts(tree), **credited})
        rows = gather_object(rows)  # a group may straddle processes
        if self._writes:
            rows.sort(key=lambda row: (chosen.index(row["problem"]), row["sample"]))
            write_rollouts(self.args.output_dir, self._step, self._settings(), rows)

    def _texts(self, tree: Tree) -> dict[str, Any]:
        thinking, ends = text_and_ends(self.tokenizer, self.tokens, tree.thinking)
        summaries = self.args.num_summaries
        told = [decode(self.tokenizer, self.tokens, leaf.summary) for leaf in tree.leaves]
        return {
            "prompt": self.tokenizer.decode(tree.prompt, skip_special_tokens=False),
            "thinking": thinking,
            "token_ends": ends,
            "tokens": len(tree.thinking),
            "end": tree.end,
            "summaries": [told[i : i + summaries] for i in range(0, len(told), summaries)],
        }

    def _settings(self) -> dict[str, Any]:
        args = self.args
        return {
            "budgets": args.budgets,
            "prior": list(args.budget_prior.weights),
            "baseline": args.baseline,
            "discount": args.discount,
            "summary_weights": list(args.summary_weights),
            "length_penalty": args.length_penalty,
        }
