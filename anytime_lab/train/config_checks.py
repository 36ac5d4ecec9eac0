"""What a `BRPOConfig` may hold. Every error says what was found, what is wanted, and the fix."""

import json
import math
import os
from typing import Any

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
