"""Settings of a training run: BRPO's fields beside TRL's, what they must hold, and the presets.

`train_config("ar_uniform", [24, 48, 72, 96], output_dir="runs/ar", learning_rate=3e-4)` is the one
way from the name of a published configuration (BRPO, arXiv 2505.13438) to its settings.
"""

import json
import math
import numbers
import os
import types
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor
from trl import GRPOConfig

from anytime_lab.priors import Prior, check_budgets
from anytime_lab.train.advantages import BASELINES, PENALTIES

# Name → words; the runner of each is in `scoring.py`.
TREE_BACKENDS = {
    "auto": "the best one that the model supports",
    "segmented": "one attention call per budget",
    "dense": "a 4D mask",
    "unrolled": "one row per summary, any architecture",
}


def _setting(default: Any, told: str) -> Any:
    """A field with its help text; a function as default makes a value for each config."""
    key = "default_factory" if callable(default) else "default"
    return field(**{key: default}, metadata={"help": told})


def _choices(table: Mapping[str, Any]) -> str:
    """The names of a table with their words, for a help text."""
    words = ((name, row if isinstance(row, str) else row[0]) for name, row in table.items())
    return "; ".join(f"{name!r}: {told}" for name, told in words)


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


def from_json_text(
    name: str, value: Any, wanted: str = "a list of numbers such as [24, 48, 96]"
) -> Any:
    """A list or dict that arrived as its text, as papermill's and shells' quoting makes it.

    Raises:
        ValueError: the text is no JSON.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    try:
        return json.loads(f"[{text[1:-1]}]" if text.startswith("(") else text)
    except json.JSONDecodeError:
        raise ValueError(f"{name} is the text {value!r}; expected {wanted}.") from None


def _article(number: type) -> str:
    return "a whole number" if number is int else "a number"


class Wanted(NamedTuple):
    """What a field must be: a test of its value, and the words for it."""

    holds: Callable[[Any], bool]
    words: str


def _whole(smallest: int) -> Wanted:
    return Wanted(
        lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= smallest,
        f"a whole number of at least {smallest}",
    )


def _number(low: float, high: float = math.inf) -> Wanted:
    """From `low` to `high`, both included; NaN is none."""
    return Wanted(
        lambda v: _is_number(v) and low <= v <= high, f"a number from {low:g} to {high:g}"
    )


def _above(low: float) -> Wanted:
    """Above `low`, and finite."""
    return Wanted(lambda v: _is_number(v) and low < v < math.inf, f"a finite number above {low:g}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _one_of(*choices: Any) -> Wanted:
    return Wanted(lambda v: v in choices, f"one of {', '.join(map(repr, choices))}")


def _only(value: Any) -> Wanted:
    return Wanted(lambda v: v == value and (v is None) == (value is None), repr(value))


def _or_none(wanted: Wanted) -> Wanted:
    return Wanted(lambda v: v is None or wanted.holds(v), f"{wanted.words}, or None")


_OFF, _UNSET = _only(False), _only(None)
_DEFAULT = "Leave it out (None) for the default."
_OWN_CACHE = "Trees are sampled with a cache of their own."
# Field, what it must be, and why or the way out.
RULES: tuple[tuple[str, Wanted, str], ...] = (
    ("num_summaries", _whole(1), "Set 1 for one summary per budget."),
    ("baseline", _one_of(*BASELINES), "The published runs use 'brpo'."),
    ("discount", _number(0, 1), "The published runs use 0.5."),
    ("train_summaries", _one_of("all", "last"), "The published AnytimeReasoner trains all."),
    ("max_summary_tokens", _whole(2), "It holds the forced text and the answer; 128 as published."),
    ("length_penalty", _or_none(_one_of(*PENALTIES)), "None is off."),
    ("length_penalty_alpha", _number(0, 1), "The published runs use 0.2."),
    ("tree_backend", _one_of(*TREE_BACKENDS), "'auto' takes what the model supports."),
    ("check_logprobs_steps", _whole(0), "0 never compares them."),
    ("logprobs_tolerance", _number(0), "It is in nats a token."),
    ("save_rollouts_steps", _whole(0), "0 writes no rollouts."),
    ("rollout_batch_size", _or_none(_whole(1)), _DEFAULT),
    ("loss_length", _or_none(_whole(1)), _DEFAULT),
    # What a tree of thinking and summaries cannot honour.
    (
        "mask_truncated_completions", _OFF,
        "A row is a whole tree; a summary that hit its limit is scored as it stands.",
    ),
    ("use_liger_kernel", _OFF, "It replaces the forward that runs packed trees."),
    ("use_transformers_continuous_batching", _OFF, _OWN_CACHE),
    ("use_transformers_paged", _OFF, _OWN_CACHE),
    ("remove_unused_columns", _OFF, "It would drop the columns that the rewards grade by."),
    ("generation_kwargs", _UNSET, "Set temperature, top_p, top_k or min_p."),
    ("cache_implementation", _UNSET, _OWN_CACHE),
    ("off_policy_mask_threshold", _UNSET, "It would mask whole trees by one number."),
    ("vllm_structured_outputs_regex", _UNSET, "A thinking and a summary follow no one pattern."),
    ("scale_rewards", _only("none"), "BRPO never divides by a standard deviation."),
    ("importance_sampling_level", _only("token"), "A sequence would be a whole tree."),
    (
        "multi_objective_aggregation", _only("sum_then_normalize"),
        "Scores are summed and not normalised.",
    ),
    (
        "vllm_importance_sampling_mode", _only("token_truncate"),
        "A ratio per sequence would be one per tree.",
    ),
    ("repetition_penalty", _only(1.0), "Sampled log-probs would not be the policy's."),
    ("loss_type", _one_of("dr_grpo", "dapo", "bnpo", "grpo", "cispo", "sapo"),
     "The published runs use 'dr_grpo'."),
    ("vllm_mode", _one_of("colocate", "server"), "'colocate' shares the trainer's GPUs."),
    ("temperature", _above(0), "Training samples from the policy: set 1.0."),
    (
        "num_generations", _whole(2),
        "A thinking is compared with the others of its group: set num_generations=8.",
    ),
    # With these TRL and transformers train nothing or the wrong way, without a word.
    ("learning_rate", _above(0), "The published runs use 1e-6; small models take 3e-4."),
    (
        "max_steps", Wanted(lambda v: v == -1 or _whole(1).holds(v), "at least 1 update"),
        "Set -1 to train for num_train_epochs instead.",
    ),
    ("num_train_epochs", _above(0), "Set 1, or max_steps for a number of updates."),
    ("per_device_train_batch_size", _whole(1), "Set as many rows as the memory holds."),
    ("gradient_accumulation_steps", _whole(1), "Set 1 for one batch an update."),
    ("max_grad_norm", _number(0), "Set 1.0 as published; 0 does not clip."),
    ("weight_decay", Wanted(lambda v: v == 0 or _above(0).holds(v), "0 or a finite number above"),
     "Set 0 for none."),
    ("warmup_steps", _number(0), "Set 0 for none."),
    ("num_iterations", _whole(1), "Set 1 to use each rollout once."),
    ("steps_per_generation", _or_none(_whole(1)), _DEFAULT),
    ("generation_batch_size", _or_none(_whole(1)), _DEFAULT),
    ("num_generations_eval", _or_none(_whole(1)), _DEFAULT),
    ("beta", _number(0), "It is the KL coefficient; 0 is off."),
    ("epsilon", _number(0), "The published runs use 0.2."),
    ("epsilon_high", _or_none(_number(0)), "None takes epsilon."),
    ("delta", _or_none(_number(0)), "None is off."),
    ("top_entropy_quantile", Wanted(lambda v: _number(0, 1).holds(v) and v > 0,
     "a number above 0, to 1"), "0 trains no token; 1.0 trains all."),
    (
        "resume_from_checkpoint", Wanted(lambda v: not v or Path(str(v)).expanduser().is_dir(),
        "a folder that exists"), "Leave it out to begin anew.",
    ),
)  # fmt: skip


def check_fields(config: Any) -> None:
    """Check every field by itself (`RULES`), then those that must go together.

    Raises:
        ValueError: a field has a value that the method, or TRL on trees, cannot take.
    """
    _check_budgets(config)
    for name, (holds, words), fix in RULES:
        if not holds(value := getattr(config, name)):
            raise ValueError(f"{name} is {value!r}; expected {words}. {fix}")
    if config.train_summaries == "last" and config.summary_prior is not None:
        raise ValueError(
            "summary_prior is set, but train_summaries='last' trains the last budget only. "
            "Set train_summaries='all', or leave summary_prior out."
        )
    _check_truncated_sampling(config)


def _check_budgets(config: Any) -> None:
    """The budgets, and the weights over them as `Prior` takes them."""
    try:
        check_budgets(config.budgets)
    except TypeError as error:
        raise ValueError(str(error)) from None
    for name in ("prior", "summary_prior"):
        weights = getattr(config, name)
        if weights is None:
            continue
        if not isinstance(weights, list):
            raise ValueError(
                f"{name} is {weights!r}; expected a list of {len(config.budgets)} numbers, or None "
                "for uniform."
            )
        try:
            Prior(tuple(config.budgets), tuple(weights))
        except ValueError as error:
            raise ValueError(f"{name} is {weights}: {error}") from None


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
    processes = _processes()
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

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "thinking_format"]

    budgets: list[int] = _setting(
        lambda: [2000, 4000, 6000, 8000],
        "Thinking budgets b_1 < ... < b_m in tokens. One thinking of b_m tokens is "
        "sampled and summarised at each of them.",
    )
    prior: list[float] | None = _setting(
        None,
        "Probability P_j of each budget; sums to 1. None is uniform. [0, ..., 0, 1] "
        "rewards the final answer only.",
    )
    summary_prior: list[float] | None = _setting(
        None,
        "Weight P'_j of each budget in the summary policy's gradient. None is uniform "
        "(BRPO eq. 10).",
    )
    num_summaries: int = _setting(
        4, "Summaries sampled for each (thinking, budget): A in the paper."
    )
    baseline: str = _setting("brpo", f"Baseline of the thinking policy. {_choices(BASELINES)}.")
    discount: float = _setting(
        0.5, "Discount of earlier scores in the progress baseline, in [0, 1]."
    )
    train_summaries: str = _setting(
        "all", "'all' trains the summaries at every budget; 'last' those at the largest only."
    )
    max_summary_tokens: int = _setting(
        128, "Longest summary in tokens, the forced text (cut suffix and answer header) included."
    )
    length_penalty: str | None = _setting(
        None, f"Shorten thinkings through the score. {_choices(PENALTIES)}. None is off."
    )
    length_penalty_alpha: float = _setting(
        0.2, "Strength of the length penalty; used when length_penalty is set."
    )
    check_format: bool = _setting(
        True,
        "Score a summary 0, whatever the reward functions say, unless exactly one "
        "think-end marker stands in its thinking and text. A thinking that ended in EOS then "
        "scores 0, as in the method.",
    )
    thinking_format: dict | str | None = _setting(
        None,
        "How the model writes a thinking: 'auto' (None; what tokenizer and chat template say), a "
        "name in anytime_lab.prompts.FORMATS, or a dict of fields of ThinkingFormat.",
    )
    tree_backend: str = _setting("auto", f"How a packed tree is run. {_choices(TREE_BACKENDS)}.")
    skip_dead_tokens: bool = _setting(
        True,
        "Leave out of an update what has no gradient: summaries whose advantage is 0, and a "
        "thinking behind its last token with one. The gradient is the same. Not done where the "
        "loss has a term on every token (beta, an entropy bonus, top_entropy_quantile). The "
        "logged entropy is then estimated by the log-probs of the sampled tokens.",
    )
    rollout_batch_size: int | None = _setting(
        None, "Trees sampled at a time on each process. None: the whole generation batch."
    )
    save_rollouts_steps: int = _setting(
        25,
        "Updates between the rollout trees of two problems that are written to "
        "output_dir/rollouts, with their advantages under every baseline (and at update 1). "
        "0 writes none.",
    )
    loss_length: int | None = _setting(
        None,
        "Constant number of tokens that the dr_grpo loss divides by. None: "
        "budgets[-1] + "
        "len(budgets) * num_summaries * max_summary_tokens.",
    )

    check_logprobs_steps: int = _setting(
        1,
        "With use_vllm, compare vLLM's log-probs of the rollouts with the trainer's "
        "each so many steps (where new rollouts are sampled) and warn where they differ. 0 is "
        "off.",
    )
    logprobs_tolerance: float = _setting(
        0.05,
        "Mean absolute difference of these log-probs, in nats a token, that is "
        "warned of. Two bf16 implementations differ by about 0.01, two in fp32 by 1e-5.",
    )

    # TRL's fields with the method's defaults (method section 7).
    loss_type: str = _setting(
        "dr_grpo",
        "'dr_grpo' (default: sum over trained tokens / constant), 'dapo', 'bnpo', "
        "'grpo', 'cispo' or 'sapo'.",
    )
    scale_rewards: str = _setting(
        "none", "Must be 'none' (or False): BRPO never divides by a standard deviation."
    )
    beta: float = _setting(0.0, "KL coefficient; 0 loads no reference model.")
    epsilon: float = _setting(0.2, "Clip range of the importance ratio.")
    temperature: float = _setting(1.0, "Sampling temperature of the rollouts.")
    max_grad_norm: float = _setting(1.0, "Largest gradient norm.")
    learning_rate: float = _setting(1e-6, "Initial learning rate of AdamW.")
    max_completion_length: int | None = _setting(
        None, "Derived from budgets, num_summaries and max_summary_tokens, or loss_length."
    )
    vllm_importance_sampling_mode: str = _setting(
        "token_truncate",
        "Must be 'token_truncate': a ratio per sequence would be one for a whole tree.",
    )

    def __post_init__(self) -> None:
        if self.output_dir is not None:
            self.output_dir = os.path.expanduser(self.output_dir)
        self._coerce()
        if self.scale_rewards is False:
            self.scale_rewards = "none"
        check_fields(self)
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

    def penalised(self, scores: Tensor, cuts: Tensor) -> Tensor:
        """Scores (P, G, J, S) on thinkings cut at (P, G, J), after the length penalty."""
        if self.length_penalty is None:
            return scores
        penalty = PENALTIES[self.length_penalty][1]
        return penalty(scores, cuts, self.budgets, self.length_penalty_alpha)

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


class Preset(NamedTuple):
    """A published configuration.

    Attributes:
        words: What it is.
        prior: From the budgets to P_j.
        settings: Fields of `BRPOConfig`.
        largest: Whether it takes the largest of the budgets only, so that one list of budgets
            serves every preset and the thinkings are equally long.
    """

    words: str
    prior: Callable[[Sequence[int]], Prior]
    settings: dict[str, Any]
    largest: bool = False


# Final summaries only, compared with the siblings of the group.
_FINAL_ONLY = {"num_summaries": 1, "train_summaries": "last", "baseline": "group"}
# Four summaries at every budget, each compared with those of the same truncated thinking.
_DECOUPLED = {"num_summaries": 4, "train_summaries": "all", "baseline": "brpo"}


def _penalised(name: str) -> dict[str, Any]:
    return {**_FINAL_ONLY, "length_penalty": name, "length_penalty_alpha": 0.2}


PRESETS: dict[str, Preset] = {
    "grpo": Preset(
        "GRPO on the largest budget: final answer rewarded, group baseline",
        Prior.base, _FINAL_ONLY, largest=True,
    ),
    "grpo_linear": Preset(
        "GRPO+linear: every budget rewarded in proportion to its length, final summary trained",
        Prior.linear, _FINAL_ONLY,
    ),
    "grpo_decouple": Preset(
        "GRPO+decouple: final answer rewarded, group baseline, summaries trained at every budget",
        Prior.base, {**_DECOUPLED, "baseline": "group"},
    ),
    "grpo_vr": Preset(
        "GRPO+vr: final answer rewarded, BRPO baseline from the earlier budgets' scores",
        Prior.base, {**_FINAL_ONLY, "baseline": "brpo"},
    ),
    "ar_base": Preset("AnytimeReasoner-base (GRPO+vr+decouple)", Prior.base, _DECOUPLED),
    "ar_linear": Preset(
        "AnytimeReasoner-linear: P_j in proportion to b_j", Prior.linear, _DECOUPLED
    ),
    "ar_uniform": Preset(
        "AnytimeReasoner-uniform: every budget counts the same", Prior.uniform, _DECOUPLED
    ),
    "grpo_length_penalty_v1": Preset(
        "GRPO with the L1 length penalty: 1 - 0.2 |z| / b_m where right",
        Prior.base, _penalised("linear"), largest=True,
    ),
    "grpo_length_penalty_v2": Preset(
        "GRPO with the length penalty of Arora & Zanette, alpha 0.2",
        Prior.base, _penalised("group"), largest=True,
    ),
}  # fmt: skip


_SCHEDULE = {
    "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5, "gradient_checkpointing": False
}  # fmt: skip


def train_config(
    preset: str,
    budgets: Sequence[int],
    *,
    problems_per_step: int | None = None,
    rows_per_batch: int | None = None,
    settings: Mapping[str, Any] | str | None = None,
    **given: Any,
) -> BRPOConfig:
    """The settings of a run: a preset's, then those given, then `settings`.

    Unless told otherwise the learning rate is constant after 5 updates, and activations are kept.

    Args:
        preset: One of `PRESETS`.
        budgets: Token budgets, shortest first.
        problems_per_step: Problems of an update over all processes, each with `num_generations`
            thinkings; used exactly. None leaves the batch to TRL's own fields.
        rows_per_batch: Most thinkings in one forward and backward pass of a process. The largest
            number that parts an update evenly is taken, and told where it is another.
        settings: Any other fields of `BRPOConfig`, which win; a dict, or its JSON text.
        **given: Fields of `BRPOConfig`, such as `output_dir` and `max_steps`.

    Raises:
        TypeError: a field is unknown, or budgets are no list.
        ValueError: there is no such preset, or values do not go together.
    """
    if preset not in PRESETS:
        raise ValueError(f"there is no preset {preset!r}; choose one of {', '.join(PRESETS)}.")
    chosen = PRESETS[preset]
    budgets = check_budgets(from_json_text("budgets", budgets))
    budgets = budgets[-1:] if chosen.largest else budgets
    fields_of = {"budgets": list(budgets), "prior": list(chosen.prior(budgets).weights)}
    fields_of |= _SCHEDULE | chosen.settings | given
    wanted = 'a dict of fields such as {"num_summaries": 2}'
    settings = from_json_text("settings", settings, wanted) or {}
    if not isinstance(settings, Mapping):
        raise ValueError(f"settings is {settings!r}; expected {wanted}.")
    if problems_per_step is not None:
        fields_of |= _batches(problems_per_step, rows_per_batch, given | settings)
    return BRPOConfig(**(fields_of | settings))


def _batches(problems: Any, most: Any, given: Mapping[str, Any]) -> dict[str, int]:
    """Rows of a batch and batches of an update, for so many problems an update."""
    group = given.get("num_generations", BRPOConfig.num_generations)
    problems = coerce_numbers("problems_per_step", problems, int)
    group = coerce_numbers("num_generations", group, int)
    rows = problems * group
    most = rows if most is None else coerce_numbers("rows_per_batch", most, int)
    processes = _processes()
    if min(problems, group, most) < 1 or rows % processes:
        raise ValueError(
            f"problems_per_step={problems} x num_generations={group} are {rows} thinkings in "
            f"batches of rows_per_batch={most}, on {processes} process(es). Each must be at least "
            "1, and the thinkings must divide among the processes."
        )
    own = rows // processes
    batch = max(size for size in range(1, min(most, own) + 1) if own % size == 0)
    if batch != min(most, own) and "per_device_train_batch_size" not in given:
        warnings.warn(
            f"problems_per_step={problems} x num_generations={group} are {own} thinkings a "
            f"process, which rows_per_batch={most} does not divide: batches of {batch} are taken.",
            stacklevel=3,
        )
    return {"per_device_train_batch_size": batch, "gradient_accumulation_steps": own // batch}


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
