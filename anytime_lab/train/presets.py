"""The nine published configurations (BRPO, arXiv 2505.13438) as functions of the budgets.

Each takes the budgets and any field of `BRPOConfig` as an override:
`ar_uniform([24, 48, 72, 96], learning_rate=3e-4, output_dir="runs/ar")`.
The presets with one budget (GRPO and its length penalties) take the largest of those given, so
that one list serves every preset and the thinkings are equally long.
"""

from collections.abc import Callable, Sequence
from typing import Any

from anytime_lab.priors import Prior, check_budgets
from anytime_lab.train.config import BRPOConfig

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
