"""The nine published configurations (BRPO, arXiv 2505.13438) as functions of the budgets.

Each takes the budgets and any field of `BRPOConfig` as an override:
`ar_uniform([24, 48, 72, 96], learning_rate=3e-4, output_dir="runs/ar")`.
The presets with one budget (GRPO and its length penalties) take the largest of those given, so
that one list serves every preset and the thinkings are equally long.
"""

import json
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import numpy
import torch
from torch import Tensor
from trl import GRPOConfig

from anytime_lab.priors import Prior, check_budgets
from anytime_lab.train.advantages import BaselineMix, group_length_penalty, linear_length_penalty

BASELINES = ("brpo", "brpo_tokens", "progress", "group", "none")
TREE_BACKENDS = ("auto", "segmented", "dense", "unrolled")
LENGTH_PENALTIES = ("linear", "group")
LOSS_TYPES = ("dr_grpo", "dapo", "bnpo", "grpo", "cispo", "sapo")


def coerce_numbers(name: str, value: Any, number: type) -> int | float:
    """`value` as `number` (int or float); a numeric string is taken as YAML's slip.

    Raises:
        ValueError: the value is no such number.
    """
    if isinstance(value, str):
        try:
            value = float(value) if number is float else int(value)
        except ValueError:
            raise ValueError(
                f"{name} is the text {value!r}; expected {_article(number)}. Write it as a "
                "number, without quotes."
            ) from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(
            f"{name} is {value!r} ({type(value).__name__}); expected {_article(number)}."
        )
    if number is int:
        if not float(value).is_integer():
            raise ValueError(
                f"{name} is {value}; expected a whole number. Round it to a number of tokens."
            )
        return int(value)
    return float(value)


def coerce_switch(name: str, value: Any) -> bool:
    """`value` as a bool; text is read, since "False" would count as true.

    Raises:
        ValueError: it is neither.
    """
    read = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if str(value).lower() not in read:
        raise ValueError(f"{name} is {value!r}; expected True or False.")
    return read[str(value).lower()]


def from_json_text(name: str, value: Any) -> Any:
    """A list that arrived as its JSON text, as papermill's and shells' quoting makes it."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value.strip().replace("(", "[").replace(")", "]"))
    except json.JSONDecodeError:
        raise ValueError(
            f"{name} is the text {value!r}; expected a list of numbers such as [24, 48, 96]."
        ) from None


def _article(number: type) -> str:
    return "a whole number" if number is int else "a number"


def _check_choice(name: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(repr, choices))}.")


def _check_int(name: str, value: Any, smallest: int, why: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
        raise ValueError(
            f"{name} is {value!r}; expected a whole number of at least {smallest}. {why}"
        )


def _check_range(name: str, value: Any, low: float, high: float, fix: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; expected a number from {low:g} to {high:g}. {fix}")


def _check_weights(name: str, weights: Any, budgets: list[int]) -> None:
    if weights is None:
        return
    if not isinstance(weights, list):
        raise ValueError(
            f"{name} is {weights!r}; expected a list of {len(budgets)} numbers, or None for "
            "uniform."
        )
    if len(weights) != len(budgets):
        raise ValueError(
            f"{name} has {len(weights)} weights for {len(budgets)} budgets {budgets}. Give one "
            "weight per budget."
        )
    if any(not math.isfinite(w) or w < 0 for w in weights):
        raise ValueError(
            f"{name} is {weights}; a weight is a probability, 0 or more. Remove the negative ones."
        )
    if abs(sum(weights) - 1.0) > 1e-6:
        raise ValueError(
            f"{name} {weights} sums to {sum(weights):.6g}; expected 1. Divide each weight by the "
            "sum."
        )


def check_brpo_fields(config: Any) -> None:
    """Check the fields that BRPO adds.

    Raises:
        ValueError: a field has a value that the method cannot take.
    """
    budgets = config.budgets
    if not isinstance(budgets, list) or not budgets:
        raise ValueError(
            f"budgets is {budgets!r}; expected a list of token counts such as [24, 48, 72, 96]."
        )
    if budgets[0] < 1:
        raise ValueError(
            f"budgets start at {budgets[0]}; a budget is at least 1 token. Remove the smaller ones."
        )
    if any(a >= b for a, b in zip(budgets, budgets[1:], strict=False)):
        raise ValueError(
            f"budgets must increase; got {budgets}. Sort them, shortest first, each once."
        )
    _check_weights("prior", config.prior, budgets)
    _check_weights("summary_prior", config.summary_prior, budgets)
    _check_int("num_summaries", config.num_summaries, 1, "Set 1 for one summary per budget.")
    _check_choice("baseline", config.baseline, BASELINES)
    _check_range("discount", config.discount, 0, 1, "The published runs use 0.5.")
    _check_choice("train_summaries", config.train_summaries, ("all", "last"))
    if config.train_summaries == "last" and config.summary_prior is not None:
        raise ValueError(
            "summary_prior is set, but train_summaries='last' trains the last budget only. "
            "Set train_summaries='all', or leave summary_prior out."
        )
    _check_int(
        "max_summary_tokens", config.max_summary_tokens, 2,
        "It holds the forced text and the answer; the published runs use 128.",
    )  # fmt: skip
    _check_choice("length_penalty", config.length_penalty, (None, *LENGTH_PENALTIES))
    _check_range(
        "length_penalty_alpha", config.length_penalty_alpha, 0, 1, "The published runs use 0.2."
    )
    _check_choice("tree_backend", config.tree_backend, TREE_BACKENDS)
    _check_int("check_logprobs_steps", config.check_logprobs_steps, 0, "0 never compares them.")
    _check_range(
        "logprobs_tolerance", config.logprobs_tolerance, 0, math.inf, "It is in nats a token."
    )
    _check_int("save_rollouts_steps", config.save_rollouts_steps, 0, "0 writes no rollouts.")
    for name in ("rollout_batch_size", "loss_length"):
        if getattr(config, name) is not None:
            _check_int(name, getattr(config, name), 1, "Leave it out (None) for the default.")


def check_trl_fields(config: Any) -> None:
    """Refuse the options of TRL that a tree of thinking and summaries cannot honour.

    Raises:
        ValueError: such an option is on; the message names the setting to use instead.
    """
    off = {
        "mask_truncated_completions": "A row is a whole tree; a summary that hit its limit is "
        "scored as it stands.",
        "use_liger_kernel": "It replaces the forward that runs packed trees.",
        "use_transformers_continuous_batching": "Trees are sampled with a cache of their own.",
        "use_transformers_paged": "Trees are sampled with a cache of their own.",
        "remove_unused_columns": "It would drop the columns that the rewards grade by.",
    }
    for name, reason in off.items():
        if getattr(config, name):
            raise ValueError(f"{name}=True cannot be used here. {reason} Set {name}=False.")
    unset = {
        "generation_kwargs": "Set temperature, top_p, top_k or min_p.",
        "cache_implementation": "The branching sampler needs its own cache.",
        "off_policy_mask_threshold": "It would mask whole trees by one number.",
        "vllm_structured_outputs_regex": "A thinking and a summary follow no one pattern.",
    }
    for name, reason in unset.items():
        if getattr(config, name) is not None:
            raise ValueError(
                f"{name} is {getattr(config, name)!r}; it cannot be used here. {reason} Leave it "
                "out."
            )
    wanted = {
        "scale_rewards": ("none", "BRPO never divides by a standard deviation."),
        "importance_sampling_level": ("token", "A sequence would be a whole tree."),
        "multi_objective_aggregation": (
            "sum_then_normalize",
            "Scores are summed and not normalised.",
        ),
        "vllm_importance_sampling_mode": (
            "token_truncate",
            "A ratio per sequence would be one per tree.",
        ),
        "repetition_penalty": (1.0, "Sampled log-probs would not be the policy's."),
    }
    for name, (value, reason) in wanted.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"{name} is {getattr(config, name)!r}; this method needs {value!r}. {reason}"
            )
    _check_loss_numbers(config)
    _check_choice("loss_type", config.loss_type, LOSS_TYPES)
    _check_choice("vllm_mode", config.vllm_mode, ("colocate", "server"))
    if not 0 < config.temperature < math.inf:
        raise ValueError(
            f"temperature is {config.temperature}; training samples from the policy. Set 1.0 (or "
            "any number above 0)."
        )
    _check_int(
        "num_generations", config.num_generations, 2,
        "A thinking is compared with the others of its group: set num_generations=8.",
    )  # fmt: skip
    _check_truncated_sampling(config)


def _check_loss_numbers(config: Any) -> None:
    """Numbers that TRL takes unchecked, and with which it trains nothing or the wrong way."""
    _check_int("num_iterations", config.num_iterations, 1, "Set 1 to use each rollout once.")
    for name in ("steps_per_generation", "generation_batch_size", "num_generations_eval"):
        if getattr(config, name) is not None:
            _check_int(name, getattr(config, name), 1, "Leave it out (None) for the default.")
    _check_range("beta", config.beta, 0, math.inf, "It is the KL coefficient; 0 is off.")
    _check_range("epsilon", config.epsilon, 0, math.inf, "The published runs use 0.2.")
    if config.epsilon_high is not None:
        _check_range("epsilon_high", config.epsilon_high, 0, math.inf, "None takes epsilon.")
    if config.delta is not None:
        _check_range("delta", config.delta, 0, math.inf, "None is off.")
    quantile = config.top_entropy_quantile
    _check_range("top_entropy_quantile", quantile, 0, 1, "1.0 trains every token.")
    if quantile == 0:
        raise ValueError("top_entropy_quantile is 0, which trains no token. Set 1.0 for all.")


def _check_truncated_sampling(config: Any) -> None:
    """Importance ratios need the sampling distribution to be the policy itself."""
    truncated = [
        f"{name}={getattr(config, name)}"
        for name, neutral in (("top_p", (1.0,)), ("top_k", (0, None)), ("min_p", (0, None)))
        if getattr(config, name) not in neutral
    ]
    steps = config.steps_per_generation or config.gradient_accumulation_steps
    reuses_rollouts = config.num_iterations > 1 or steps > config.gradient_accumulation_steps
    if truncated and config.use_vllm and config.vllm_importance_sampling_correction:
        raise ValueError(
            f"{', '.join(truncated)} samples from a truncated distribution, while the correction "
            "of vLLM's log-probs takes the policy's whole one. Set top_p=1.0, top_k=0 and "
            "min_p=None, or vllm_importance_sampling_correction=False."
        )
    if truncated and (reuses_rollouts or config.generation_batch_size is not None):
        raise ValueError(
            f"{', '.join(truncated)} samples from a truncated distribution, while the importance "
            "ratios of reused "
            "rollouts are taken from the whole one. Set top_p=1.0, top_k=0 and min_p=None, or use "
            "each rollout once "
            "(num_iterations=1, steps_per_generation and generation_batch_size left out)."
        )


def check_batch_arithmetic(config: Any) -> None:
    """Check that a generation holds whole groups, before TRL does with a shorter message.

    Settings that come from `to_dict()` hold both `generation_batch_size` and
    `steps_per_generation`, which TRL refuses; the former is dropped where they agree.

    Raises:
        ValueError: the rows of one generation do not make whole groups.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    rows = config.per_device_train_batch_size * processes
    if config.generation_batch_size is not None and config.steps_per_generation is not None:
        if config.generation_batch_size != rows * config.steps_per_generation:
            raise ValueError(
                f"generation_batch_size={config.generation_batch_size} and steps_per_generation="
                f"{config.steps_per_generation} disagree ({rows} rows a step). Set one of them."
            )
        config.generation_batch_size = None
    steps = config.steps_per_generation or config.gradient_accumulation_steps
    total = config.generation_batch_size or rows * steps
    groups = config.num_generations
    if total < 1 or total % groups:
        raise ValueError(
            f"One generation has {total} thinkings "
            f"(per_device_train_batch_size={config.per_device_train_batch_size} "
            f"x {processes} processes x {steps} steps), which is no whole number of groups of "
            f"num_generations={groups}. "
            f"Set per_device_train_batch_size={groups}, or gradient_accumulation_steps so that "
            "the product is a "
            f"multiple of {groups}."
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


PRESETS = (
    "grpo",
    "grpo_linear",
    "grpo_decouple",
    "grpo_vr",
    "ar_base",
    "ar_linear",
    "ar_uniform",
    "grpo_length_penalty_v1",
    "grpo_length_penalty_v2",
)


def _config(
    budgets: Sequence[int], make_prior: Callable[..., Prior], settings: dict, overrides: dict
) -> BRPOConfig:
    budgets = check_budgets(budgets)
    given = {"budgets": list(budgets), "prior": list(make_prior(budgets).weights)}
    return BRPOConfig(**{**given, **settings, **overrides})


# Final summaries only, compared with the siblings of the group.
_FINAL_ONLY = {"num_summaries": 1, "train_summaries": "last", "baseline": "group"}
# Four summaries at every budget, each compared with those of the same truncated thinking.
_DECOUPLED = {"num_summaries": 4, "train_summaries": "all"}


def grpo(budgets: Sequence[int], **overrides: Any) -> BRPOConfig:
    """GRPO on the largest budget: final answer rewarded, group baseline."""
    return _config(check_budgets(budgets)[-1:], Prior.base, _FINAL_ONLY, overrides)


def grpo_linear(budgets: Sequence[int], **overrides: Any) -> BRPOConfig:
    """GRPO+linear: every budget rewarded in proportion to its length, final summary trained."""
    return _config(budgets, Prior.linear, _FINAL_ONLY, overrides)


def grpo_decouple(budgets: Sequence[int], **overrides: Any) -> BRPOConfig:
    """GRPO+decouple: final answer rewarded, group baseline, summaries trained at every budget."""
    return _config(budgets, Prior.base, {**_DECOUPLED, "baseline": "group"}, overrides)


def grpo_vr(budgets: Sequence[int], **overrides: Any) -> BRPOConfig:
    """GRPO+vr: final answer rewarded, BRPO baseline from the earlier budgets' scores."""
    return _config(budgets, Prior.base, {**_FINAL_ONLY, "baseline": "brpo"}, overrides)


def ar_base(budgets: Sequence[int], **overrides: Any) -> BRPOConfig:
    """AnytimeReasoner-base (GRPO+vr+decouple)."""
    return _config(budgets, Prior.base, {**_DECOUPLED, "baseline": "brpo"}, overrides)


def ar_linear(budgets: Sequence[int], **overrides: Any) -> BRPOConfig:
    """AnytimeReasoner-linear: P_j in proportion to b_j."""
    return _config(budgets, Prior.linear, {**_DECOUPLED, "baseline": "brpo"}, overrides)


def ar_uniform(budgets: Sequence[int], **overrides: Any) -> BRPOConfig:
    """AnytimeReasoner-uniform: every budget counts the same."""
    return _config(budgets, Prior.uniform, {**_DECOUPLED, "baseline": "brpo"}, overrides)


def grpo_length_penalty_v1(budgets: Sequence[int], **overrides: Any) -> BRPOConfig:
    """GRPO with the L1 length penalty: 1 - 0.2 |z| / b_m where right."""
    settings = {**_FINAL_ONLY, "length_penalty": "linear", "length_penalty_alpha": 0.2}
    return _config(check_budgets(budgets)[-1:], Prior.base, settings, overrides)


def grpo_length_penalty_v2(budgets: Sequence[int], **overrides: Any) -> BRPOConfig:
    """GRPO with the length penalty of Arora & Zanette, alpha 0.2."""
    settings = {**_FINAL_ONLY, "length_penalty": "group", "length_penalty_alpha": 0.2}
    return _config(check_budgets(budgets)[-1:], Prior.base, settings, overrides)


def by_name(name: str) -> Callable[..., BRPOConfig]:
    """The preset of that name, e.g. "ar_uniform".

    Raises:
        ValueError: there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}.")
    return globals()[name]


def paper_1_5b(num_processes: int = 8, per_device_train_batch_size: int = 4) -> dict[str, Any]:
    """The settings of the published 1.5B runs, to be passed to a preset as overrides.

    64 questions x 8 thinkings a generation, an update for each half of them, whatever the number
    of processes: `ar_uniform(PAPER_BUDGETS, **paper_1_5b(num_processes=8), output_dir=...)`.

    Args:
        num_processes: processes of the run, one per GPU.
        per_device_train_batch_size: trees in one forward and backward pass.

    Raises:
        ValueError: 256 thinkings an update do not divide by the two arguments' product.
    """
    rows = num_processes * per_device_train_batch_size
    if rows < 1 or 256 % rows:
        raise ValueError(
            f"{num_processes} processes x {per_device_train_batch_size} rows do not divide the 256 "
            "thinkings of an update. Choose powers of two, at most 256 together."
        )
    return {
        "num_generations": 8,
        "per_device_train_batch_size": per_device_train_batch_size,
        "gradient_accumulation_steps": 256 // rows,
        "steps_per_generation": 512 // rows,
        "num_train_epochs": 1,
        "learning_rate": 1e-6,
        "epsilon": 0.2,
        "max_grad_norm": 1.0,
        "beta": 0.0,
        "temperature": 1.0,
        "max_summary_tokens": 128,
        "loss_length": 10_176,
    }


PAPER_BUDGETS = (2000, 4000, 6000, 8000)
