"""`BRPOConfig`: TRL's `GRPOConfig` with budgets, a prior over them and the method's defaults."""

import numbers
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import numpy
import torch
from torch import Tensor
from trl import GRPOConfig

from anytime_lab.priors import Prior
from anytime_lab.train.advantages import BaselineMix, group_length_penalty, linear_length_penalty
from anytime_lab.train.config_checks import (
    check_batch_arithmetic,
    check_brpo_fields,
    check_trl_fields,
    coerce_numbers,
    coerce_switch,
    from_json_text,
)


def _members(annotation: object) -> set[object]:
    """The types that an annotation such as `int | None` allows."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return set(typing.get_args(annotation))
    return {annotation}


@dataclass
class BRPOConfig(GRPOConfig):
    """Settings of one BRPO run: every field of `trl.GRPOConfig`, and those below.

    The defaults are the settings of the published runs (method: BRPO, arXiv 2505.13438):
    no reward scaling, a constant loss length, clip 0.2, no KL.

    Differences from TRL's defaults: `loss_type="dr_grpo"`, `scale_rewards="none"`,
    `vllm_importance_sampling_mode="token_truncate"` (TRL's default takes one ratio for a whole
    tree), and `bf16` is off where there is no CUDA device. `max_completion_length` is derived:
    it is the constant that `dr_grpo` divides by, so set `loss_length` to choose it.
    """

    _VALID_DICT_FIELDS = GRPOConfig._VALID_DICT_FIELDS

    budgets: list[int] = field(
        default_factory=lambda: [2000, 4000, 6000, 8000],
        metadata={
            "help": "Thinking budgets b_1 < ... < b_m in tokens. One thinking of b_m tokens is "
            "sampled and summarised at each of them."
        },
    )
    prior: list[float] | None = field(
        default=None,
        metadata={
            "help": "Probability P_j of each budget; sums to 1. None is uniform. [0, ..., 0, 1] "
            "rewards the final answer only."
        },
    )
    summary_prior: list[float] | None = field(
        default=None,
        metadata={
            "help": "Weight P'_j of each budget in the summary policy's gradient. None is uniform "
            "(BRPO eq. 10)."
        },
    )
    num_summaries: int = field(
        default=4,
        metadata={"help": "Summaries sampled for each (thinking, budget): A in the paper."},
    )
    baseline: str = field(
        default="brpo",
        metadata={
            "help": "Baseline of the thinking policy: 'brpo' (progress and group mixed by budget "
            "index, eq. 9), 'brpo_tokens' (mixed by tokens), 'progress' (eq. 7 alone), 'group' "
            "(eq. 8 alone), 'none'."
        },
    )
    discount: float = field(
        default=0.5,
        metadata={"help": "Discount of earlier scores in the progress baseline, in [0, 1]."},
    )
    train_summaries: str = field(
        default="all",
        metadata={
            "help": "'all' trains the summaries at every budget; 'last' those at the largest only."
        },
    )
    max_summary_tokens: int = field(
        default=128,
        metadata={
            "help": "Longest summary in tokens, the forced text (cut suffix and answer header) "
            "included."
        },
    )
    length_penalty: str | None = field(
        default=None,
        metadata={
            "help": "Shorten thinkings through the score: 'linear' (L1: 1 - alpha |z| / b_m where "
            "right) or 'group' (Arora & Zanette: relative to the lengths of the group's right "
            "thinkings). None is off."
        },
    )
    length_penalty_alpha: float = field(
        default=0.2,
        metadata={"help": "Strength of the length penalty; used when length_penalty is set."},
    )
    check_format: bool = field(
        default=True,
        metadata={
            "help": "Score a summary 0, whatever the reward functions say, unless exactly one "
            "think-end marker stands in its thinking and text. A thinking that ended in EOS then "
            "scores 0, as in the method."
        },
    )
    tree_backend: str = field(
        default="auto",
        metadata={
            "help": "How a packed tree is run: 'segmented' (one attention call per budget), "
            "'dense' "
            "(a 4D mask), 'unrolled' (one row per summary, any architecture), or 'auto': the best "
            "one that the model supports."
        },
    )
    rollout_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Trees sampled at a time on each process. None: the whole generation batch."
        },
    )
    save_rollouts_steps: int = field(
        default=25,
        metadata={
            "help": "Updates between the rollout trees of two problems that are written to "
            "output_dir/rollouts, with their advantages under every baseline (and at update 1). "
            "0 writes none."
        },
    )
    loss_length: int | None = field(
        default=None,
        metadata={
            "help": "Constant number of tokens that the dr_grpo loss divides by. None: "
            "budgets[-1] + "
            "len(budgets) * num_summaries * max_summary_tokens."
        },
    )

    check_logprobs_steps: int = field(
        default=1,
        metadata={
            "help": "With use_vllm, compare vLLM's log-probs of the rollouts with the trainer's "
            "each so many steps (where new rollouts are sampled) and warn where they differ. 0 is "
            "off."
        },
    )
    logprobs_tolerance: float = field(
        default=0.05,
        metadata={
            "help": "Mean absolute difference of these log-probs, in nats a token, that is "
            "warned of. Two bf16 implementations differ by about 0.01, two in fp32 by 1e-5."
        },
    )

    # TRL's fields with the method's defaults (method section 7).
    loss_type: str = field(
        default="dr_grpo",
        metadata={
            "help": "'dr_grpo' (default: sum over trained tokens / constant), 'dapo', 'bnpo', "
            "'grpo', 'cispo' or 'sapo'."
        },
    )
    scale_rewards: str = field(
        default="none",
        metadata={"help": "Must be 'none' (or False): BRPO never divides by a standard deviation."},
    )
    beta: float = field(
        default=0.0, metadata={"help": "KL coefficient; 0 loads no reference model."}
    )
    epsilon: float = field(default=0.2, metadata={"help": "Clip range of the importance ratio."})
    temperature: float = field(
        default=1.0, metadata={"help": "Sampling temperature of the rollouts."}
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "Largest gradient norm."})
    learning_rate: float = field(default=1e-6, metadata={"help": "Initial learning rate of AdamW."})
    max_completion_length: int | None = field(
        default=None,
        metadata={
            "help": "Derived from budgets, num_summaries and max_summary_tokens, or loss_length."
        },
    )
    vllm_importance_sampling_mode: str = field(
        default="token_truncate",
        metadata={
            "help": "Must be 'token_truncate': a ratio per sequence would be one for a whole tree."
        },
    )

    def __post_init__(self) -> None:
        self._coerce()
        check_brpo_fields(self)
        if self.scale_rewards is False:
            self.scale_rewards = "none"
        check_trl_fields(self)
        self._derive_loss_length()
        if self.bf16 is None and not self.fp16 and not torch.cuda.is_available():
            # bf16 autocast gains nothing on a small model on CPU and breaks exact comparisons.
            self.bf16 = False
        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False  # it would only warn
        check_batch_arithmetic(self)
        super().__post_init__()

    def _coerce(self) -> None:
        """Accept what YAML, JSON and papermill make of numbers, switches and lists."""
        for item in fields(self):
            value = getattr(self, item.name)
            members = _members(item.type)
            optional = types.NoneType in members
            kinds = members - {types.NoneType}
            if value is None and (optional or item.default is None):
                continue
            if kinds in ({int}, {float}) and not isinstance(value, numbers.Real):
                setattr(self, item.name, coerce_numbers(item.name, value, *kinds))
            if kinds == {bool} and not isinstance(value, (bool, numpy.bool_)):
                setattr(self, item.name, coerce_switch(item.name, value))
        for name, number in (("budgets", int), ("prior", float), ("summary_prior", float)):
            value = from_json_text(name, getattr(self, name))
            if isinstance(value, (list, tuple)):
                value = [coerce_numbers(f"{name}[{i}]", v, number) for i, v in enumerate(value)]
            setattr(self, name, value)

    def _derive_loss_length(self) -> None:
        derived = self.budgets[-1] + self.num_leaves * self.max_summary_tokens
        length = derived if self.loss_length is None else self.loss_length
        if self.max_completion_length not in (None, length):
            raise ValueError(
                f"max_completion_length is {self.max_completion_length}, but here it is derived "
                f"({length}): the length of a thinking is budgets[-1], of a summary "
                "max_summary_tokens. "
                "Leave it out; set loss_length to choose the constant that the loss divides by."
            )
        self.max_completion_length = length

    @property
    def num_leaves(self) -> int:
        """Summaries of one thinking, J * S."""
        return len(self.budgets) * self.num_summaries

    @property
    def budget_prior(self) -> Prior:
        """P_j as a value."""
        if self.prior is None:
            return Prior.uniform(tuple(self.budgets))
        return Prior.of(tuple(self.budgets), tuple(self.prior))

    @property
    def summary_weights(self) -> tuple[float, ...]:
        """Weight of each budget's summaries in the gradient, (J,)."""
        count = len(self.budgets)
        if self.train_summaries == "last":
            return (0.0,) * (count - 1) + (1.0,)
        if self.summary_prior is None:
            return (1.0 / count,) * count
        return tuple(self.summary_prior)

    @property
    def mixes(self) -> dict[str, BaselineMix]:
        """Every choice of `baseline`: how progress and group are weighted at each budget."""
        budgets = tuple(self.budgets)
        return {
            "brpo": BaselineMix.brpo(len(budgets)),
            "brpo_tokens": BaselineMix.brpo_tokens(budgets),
            "progress": BaselineMix.progress_only(len(budgets)),
            "group": BaselineMix.group_only(len(budgets)),
            "none": BaselineMix.none(len(budgets)),
        }

    @property
    def mix(self) -> BaselineMix:
        """How the progress and the group baseline are weighted at each budget."""
        return self.mixes[self.baseline]

    @property
    def method(self) -> dict[str, Any]:
        """What makes this run this method: the fields that BRPO adds, as they act."""
        return {
            "budgets": self.budgets,
            "prior": [round(w, 4) for w in self.budget_prior.weights],
            "summary_prior": [round(w, 4) for w in self.summary_weights],
            "num_summaries": self.num_summaries,
            "num_generations": self.num_generations,
            "baseline": self.baseline,
            "discount": self.discount,
            "length_penalty": self.length_penalty
            and (
                self.length_penalty,
                self.length_penalty_alpha,
            ),
            "loss_length": self.max_completion_length,
            "problems_per_generation": self.generation_batch_size // self.num_generations,
        }

    @property
    def penalised(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Scores (P, G, J, S) and cuts (P, G, J) to scores after the length penalty."""
        alpha = self.length_penalty_alpha
        makers = {
            None: lambda scores, cuts: scores,
            "linear": partial(linear_length_penalty, largest=self.budgets[-1], alpha=alpha),
            "group": partial(group_length_penalty, alpha=alpha),
        }
        return makers[self.length_penalty]

    def is_generation_boundary(self, step: int) -> bool:
        """Whether new rollouts follow this optimiser step, so that resuming there is exact."""
        period = self.steps_per_generation * self.num_iterations
        return step * self.gradient_accumulation_steps % period == 0

    def saves_rollouts_at(self, step: int) -> bool:
        """Whether the generation that update `step` begins with is written to the run folder.

        The first one is; then those that serve an update divisible by `save_rollouts_steps`.
        """
        every = self.save_rollouts_steps
        if every == 0:
            return False
        period = self.steps_per_generation * self.num_iterations
        last = step + max(1, period // self.gradient_accumulation_steps) - 1
        return step == 1 or last // every > (step - 1) // every
