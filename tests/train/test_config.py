"""BRPOConfig: defaults of the method, refusals that say the fix, and round trips."""

import dataclasses
import shlex

import pytest
from transformers import HfArgumentParser
from trl import GRPOConfig

from anytime_lab.train.config import BRPOConfig

BASE = {
    "budgets": [24, 48, 72, 96],
    "num_generations": 4,
    "per_device_train_batch_size": 4,
    "max_summary_tokens": 20,
    "report_to": "none",
}


def make(**settings):
    return BRPOConfig(**{**BASE, "output_dir": "unused", **settings})


def test_the_defaults_are_the_settings_of_the_published_runs():
    config = BRPOConfig(output_dir="unused")
    assert config.budgets == [2000, 4000, 6000, 8000]
    assert config.budget_prior.weights == (0.25,) * 4
    assert config.summary_weights == (0.25,) * 4
    assert (config.num_summaries, config.discount, config.baseline) == (4, 0.5, "brpo")
    assert (config.loss_type, config.scale_rewards, config.beta) == ("dr_grpo", "none", 0.0)
    assert (config.epsilon, config.temperature, config.max_grad_norm) == (0.2, 1.0, 1.0)
    assert config.learning_rate == 1e-6
    assert config.vllm_importance_sampling_mode == "token_truncate"


def test_the_loss_length_is_the_longest_tree_unless_it_is_set():
    assert make(num_summaries=4).max_completion_length == 96 + 4 * 4 * 20
    assert make(loss_length=500).max_completion_length == 500
    with pytest.raises(ValueError, match="set loss_length"):
        make(max_completion_length=512)


WRONG_VALUES = [
    ({"budgets": []}, "budgets is empty"),
    ({"budgets": [48, 24]}, "Sort them, shortest first"),
    ({"budgets": [24, 24]}, "increase; got \\[24, 24\\]"),
    ({"budgets": [0, 24]}, "1 or more"),
    ({"budgets": [24.5, 48]}, "budgets\\[0\\] is 24.5; expected a valid integer"),
    ({"budgets": [True, 48]}, "budgets\\[0\\] is True"),
    (
        {"budgets": ["a", 48]},
        "budgets\\[0\\] is 'a'(.|\n)*whole tokens, such as",
    ),
    ({"budgets": "24 to 96"}, "expected a valid list. Thinking budgets"),
    ({"budgets": 96}, "budgets is 96; expected a valid list"),
    ({"prior": [0.5, 0.5]}, "2 weights for 4 budgets"),
    ({"prior": [0.5, 0.5, 0.5, -0.5]}, "must be 0 or more"),
    ({"prior": [0.5, 0.5, 0.5, 0.5]}, "they sum to 2. Divide each by the sum"),
    (
        {"prior": [float("nan"), 0.5, 0.25, 0.25]},
        "prior\\[0\\] is nan; expected a finite number. Probability",
    ),
    ({"summary_prior": [1.0]}, "summary_prior is \\[1.0\\]: the prior has 1 weights"),
    ({"summary_prior": [0.25] * 4, "train_summaries": "last"}, "leave summary_prior out"),
    ({"summary_prior": [0.25] * 4, "summary_weighting": "authors"}, "leave summary_prior out"),
    ({"summary_weighting": "eq. 10"}, "expected 'eq10' or 'authors'. Weight of a"),
    ({"num_summaries": 0}, "num_summaries is 0"),
    ({"num_summaries": 1.5}, "num_summaries is 1.5"),
    ({"baseline": "v1"}, "'progress'"),
    ({"baseline": "serial", "budgets": [96]}, "nothing would be trained. Set more of them"),
    ({"discount": 1.5}, "discount is 1.5; expected at most 1. Discount of(.|\n)*0.5 as published"),
    ({"discount": -0.1}, "discount is -0.1"),
    ({"train_summaries": "final"}, "expected 'all' or 'last'"),
    ({"max_summary_tokens": 1}, "max_summary_tokens is 1"),
    (
        {"length_penalty": "l1"},
        "'overlong', 'limit' or 'decay'. Shorten(.|\n)*None is off",
    ),
    ({"length_penalty_alpha": -1}, "length_penalty_alpha is -1"),
    ({"tree_backend": "flex"}, "'segmented'"),
    ({"rollout_batch_size": 0}, "rollout_batch_size is 0"),
    ({"loss_length": 0}, "loss_length is 0"),
    ({"num_generations": 1}, "num_generations is 1"),
    ({"learning_rate": "fast"}, "learning_rate is 'fast'; expected a valid number"),
    ({"per_device_train_batch_size": 6}, "divisible by num_generations"),
    ({"learning_rate": None}, "learning_rate is None; expected a valid number"),
    ({"max_grad_norm": [1.0]}, "max_grad_norm is \\[1.0\\]"),
    ({"check_format": "never"}, "check_format is 'never'; expected a valid boolean"),
    ({"use_vllm": None}, "use_vllm is None; expected a valid boolean"),
    ({"num_iterations": 0}, "num_iterations is 0"),
    ({"steps_per_generation": 0}, "steps_per_generation is 0"),
    ({"generation_batch_size": 0}, "generation_batch_size is 0"),
    ({"num_generations_eval": -2}, "num_generations_eval is -2"),
    ({"beta": -0.1}, "beta is -0.1; expected at least 0"),
    ({"epsilon": -1.0}, "epsilon is -1.0"),
    ({"epsilon_high": -0.2}, "epsilon_high is -0.2"),
    ({"delta": -1.0}, "delta is -1.0"),
    ({"top_entropy_quantile": 1.5}, "top_entropy_quantile is 1.5"),
    ({"top_entropy_quantile": 0.0}, "trains no token"),
    ({"temperature": float("nan")}, "set 1.0"),
    ({"learning_rate": 0.0}, "learning_rate is 0.0; expected greater than 0"),
    ({"learning_rate": float("inf")}, "learning_rate is inf"),
    ({"learning_rate": float("nan")}, "learning_rate is nan"),
    ({"max_steps": 0}, "max_steps is 0; expected at least 1 or -1. Set"),
    ({"max_steps": -2}, "max_steps is -2"),
    ({"max_steps": 1.5}, "max_steps is 1.5"),
    ({"num_train_epochs": 0}, "num_train_epochs is 0"),
    ({"max_grad_norm": float("nan")}, "max_grad_norm is nan"),
    ({"max_grad_norm": -1.0}, "max_grad_norm is -1.0"),
    ({"weight_decay": -0.1}, "weight_decay is -0.1"),
    ({"warmup_steps": -1}, "warmup_steps is -1"),
    ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0"),
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0"),
    ({"resume_from_checkpoint": "nowhere"}, "'nowhere'; expected a folder that exists"),
]
UNSUPPORTED = [  # options of TRL that trees cannot honour
    ({"mask_truncated_completions": True}, "True; expected False"),
    ({"remove_unused_columns": True}, "True; expected False"),
    ({"use_liger_kernel": True}, "True; expected False"),
    ({"use_vllm": True, "top_p": 0.9}, "vllm_importance_sampling_correction=False"),
    ({"use_vllm": True, "vllm_mode": "remote"}, "'colocate' or 'server'"),
    ({"use_vllm": True, "vllm_structured_outputs_regex": "[0-9]"}, "expected None"),
    ({"check_logprobs_steps": -1}, "at least 0"),
    ({"logprobs_tolerance": -0.1}, "at least 0"),
    ({"use_transformers_continuous_batching": True}, "expected False"),
    ({"generation_kwargs": {"num_beams": 2}}, "Set temperature"),
    ({"cache_implementation": "static"}, "expected None"),
    ({"off_policy_mask_threshold": 0.5}, "expected None"),
    ({"ds3_gather_for_generation": False}, "expected True. Under ZeRO-3"),
    ({"scale_rewards": "group"}, "expected 'none'"),
    ({"scale_rewards": True}, "expected 'none'"),
    ({"scale_rewards": "batch"}, "expected 'none'"),
    ({"importance_sampling_level": "sequence"}, "expected 'token'"),
    ({"multi_objective_aggregation": "normalize_then_sum"}, "expected 'sum_then_normalize'"),
    ({"vllm_importance_sampling_mode": "sequence_mask"}, "expected 'token_truncate'"),
    ({"repetition_penalty": 1.1}, "expected at most 1"),
    ({"loss_type": "luspo"}, "expected 'dr_grpo'"),
    ({"loss_type": "vespo"}, "expected 'dr_grpo'"),
    ({"temperature": 0.0}, "set 1.0"),
    ({"top_p": 0.9, "num_iterations": 2}, "Set top_p=1.0"),
    ({"top_k": 20, "steps_per_generation": 2}, "top_k=20"),
    ({"min_p": 0.1, "steps_per_generation": 4}, "min_p=0.1"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG_VALUES + UNSUPPORTED)
def test_a_wrong_value_is_refused_with_what_was_found_and_the_fix(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_scale_rewards_false_means_none():
    assert make(scale_rewards=False).scale_rewards == "none"


def test_truncated_sampling_is_allowed_where_each_rollout_is_used_once():
    assert make(top_p=0.9, gradient_accumulation_steps=2).top_p == 0.9


def test_numbers_that_yaml_made_text_are_read():
    config = make(
        learning_rate="3e-4",
        num_summaries="2",
        discount="0.25",
        budgets=("24", "48"),
        prior=["0.5", 0.5],
    )
    assert config.learning_rate == 3e-4
    assert (config.num_summaries, config.discount) == (2, 0.25)
    assert (config.budgets, config.prior) == ([24, 48], [0.5, 0.5])


def test_switches_that_arrive_as_text_are_read():
    config = make(check_format="False", log_completions="yes", bf16="false", use_cpu="1")
    read = (config.check_format, config.log_completions, config.bf16, config.use_cpu)
    assert read == (False, True, False, True)
    assert config.shuffle_dataset is True and make(shuffle_dataset=None).shuffle_dataset is None


def test_lists_that_arrive_as_text_are_read():
    config = make(budgets="[24, 48]", prior="(0.25, 0.75)")
    assert (config.budgets, config.prior) == ([24, 48], [0.25, 0.75])


def test_a_config_survives_to_dict_and_replace():
    config = make(prior=[0.1, 0.2, 0.3, 0.4], steps_per_generation=2, loss_length=300)
    again = BRPOConfig(**config.to_dict())
    ours = {f.name for f in dataclasses.fields(BRPOConfig)} - {"accelerator_config"}
    before, after = config.to_dict(), again.to_dict()
    assert {k: before[k] for k in ours & before.keys()} == {
        k: after[k] for k in ours & after.keys()
    }
    assert dataclasses.replace(config, discount=0.9).discount == 0.9


def test_the_command_line_takes_every_field():
    (config,) = HfArgumentParser(BRPOConfig).parse_args_into_dataclasses(
        shlex.split(
            "--output_dir unused --budgets 24 48 --prior 0.25 0.75 --num_summaries 2 "
            "--num_generations 4 --per_device_train_batch_size 4 --max_summary_tokens 20 "
            "--baseline group"
        )
    )
    assert (config.budgets, config.prior) == ([24, 48], [0.25, 0.75])
    assert (config.num_summaries, config.baseline) == (2, "group")


def test_every_field_of_ours_says_what_it_does():
    theirs = {f.name for f in dataclasses.fields(GRPOConfig)}
    ours = [f for f in dataclasses.fields(BRPOConfig) if f.name not in theirs]
    assert len(ours) >= 12
    for field in ours:
        assert len(field.metadata["help"]) > 30, field.name


def test_generation_boundaries_are_where_new_rollouts_begin():
    config = make(steps_per_generation=4, gradient_accumulation_steps=2, num_iterations=2)
    assert [s for s in range(1, 9) if config.is_generation_boundary(s)] == [4, 8]
    assert all(make().is_generation_boundary(s) for s in range(5))
