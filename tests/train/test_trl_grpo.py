"""What TRL's own tests ask of `GRPOTrainer`, asked of `BRPOTrainer`: it holds, or is refused.

One row a question, in the order of TRL's tests (huggingface/trl, tests/test_grpo_trainer.py).
docs/trl.md is made from the rows: `python tests/train/test_trl_grpo.py > docs/trl.md`.
"""

import asyncio
import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForSequenceClassification

from anytime_lab.train.trainer import BRPOTrainer

PAGE = Path(__file__).parents[2] / "docs/trl.md"
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def trainer_of(folder: Path, reward: Any = tiny.digit_reward, model: Any = None, **more: Any):
    """A trainer; `more` are arguments of its own, or settings of the tiny config."""
    own = {
        "eval_dataset",
        "reward_processing_classes",
        "peft_config",
        "processing_class",
        "tools",
        "environment_factory",
        "rollout_func",
    } & more.keys()
    arguments = {"processing_class": tiny.tokenizer(), **{name: more.pop(name) for name in own}}
    data = more.pop("data", None) or tiny.problems()
    config = tiny.config(folder, **more)
    return BRPOTrainer(model or tiny.model(), reward, config, data, **arguments)


def trained(folder: Path, *arguments: Any, moves: bool = True, **more: Any) -> BRPOTrainer:
    """Two updates: there is a loss, and every weight that is trained has moved."""
    trainer = trainer_of(folder, *arguments, **more)
    named = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    before = {name: weight.detach().clone() for name, weight in named.items()}
    trainer.train()
    assert trainer.state.log_history[-1]["train_loss"] is not None
    still = {name for name, weight in named.items() if torch.equal(weight, before[name])}
    assert not still if moves else still == named.keys()
    return trainer


def logged(trainer: BRPOTrainer) -> set[str]:
    """Everything that was logged."""
    return {key for line in trainer.state.log_history for key in line}


# --- what holds ----------------------------------------------------------------------------------


def lengths(completions, **_columns):
    return [float(len(text[0]["content"])) / 100 for text in completions]


async def lengths_later(completions, **columns):
    await asyncio.sleep(0)
    return lengths(completions, **columns)


def nothing(completions, **_columns):
    return [None] * len(completions)


def classifier():
    """A tiny reward model."""
    config = Qwen2Config(
        **{**tiny.SMALL, "num_labels": 1, "pad_token_id": tiny.tokenizer().pad_token_id}
    )
    return Qwen2ForSequenceClassification(config)


def families(folder):
    for name in tiny.MODELS:
        trained(folder / name, model=tiny.MODELS[name]())


def loss_types(folder):
    for name in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"):
        trained(folder / name, loss_type=name)


def prompts(folder):
    for conversational in (True, False):
        reward = tiny.digit_reward
        trained(folder / f"{conversational}", reward, data=tiny.problems(12, conversational))


def streamed(folder):
    data = tiny.problems().to_iterable_dataset()
    trained(folder, data=data, accelerator_config={"dispatch_batches": False})


def evaluated(folder):
    told = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 4}
    for name, data in (
        ("one", tiny.problems()),
        ("two", {"a": tiny.problems(), "b": tiny.problems()}),
    ):
        trainer = trained(folder / name, eval_dataset=data, **told)
        assert {"eval_loss" if name == "one" else "eval_a_loss"} <= logged(trainer)


def evaluated_at_the_start(folder):
    trained(
        folder,
        eval_dataset=tiny.problems(),
        eval_strategy="steps",
        eval_steps=2,
        eval_on_start=True,
        num_generations_eval=2,
        per_device_eval_batch_size=4,
    )


def adapters(folder):
    trained(folder / "config", peft_config=LORA)
    trained(folder / "model", model=get_peft_model(tiny.model(), LORA))
    trained(folder / "saving", peft_config=LORA, gradient_checkpointing=True)


def reward_model(folder):
    trained(folder / "alone", classifier(), reward_processing_classes=tiny.tokenizer())
    trainer = trained(
        folder / "mixed",
        [lengths, classifier()],
        reward_processing_classes=[None, tiny.tokenizer()],
    )
    assert "rewards/lengths/mean" in logged(trainer)


def several_rewards(folder):
    trainer = trained(folder, [lengths, tiny.digit_reward], reward_weights=[0.7, 0.3])
    assert {f"rewards/{name}/mean" for name in ("lengths", "digit_reward")} <= logged(trainer)


def later_reward(folder):
    trained(folder, [lengths, lengths_later])


def abstaining(folder):
    trained(folder / "one of two", [lengths, nothing])
    trained(folder / "all", nothing, moves=False)


def more_columns(folder):
    def reward(completions, answer, some_values, **_columns):
        assert len(answer) == len(some_values) == len(completions)
        return [
            score + value for score, value in zip(lengths(completions), some_values, strict=True)
        ]

    data = tiny.problems()
    trained(folder, reward, data=data.add_column("some_values", list(range(len(data)))))


def reference(folder):
    tiny.model().save_pretrained(folder / "start")
    more = {"model": str(folder / "start"), "beta": 0.1}
    for corrected in (False, True):
        trainer = trained(folder / f"kl {corrected}", use_bias_correction_kl=corrected, **more)
        assert trainer.ref_model is not None and "kl" in logged(trainer)
    trainer = trainer_of(folder / "synced", sync_ref_model=True, ref_model_sync_steps=2, **more)
    before = [weight.detach().clone() for weight in trainer.ref_model.parameters()]
    trainer.train()
    assert not any(map(torch.equal, before, trainer.ref_model.parameters()))


def entropy_bonus(folder):
    trained(folder / "static", entropy_coef=0.1)
    trainer = trained(
        folder / "adaptive", entropy_coef=0.01, use_adaptive_entropy=True, entropy_target=15.0
    )
    assert trainer.entropy_coef > 0.01


def float_head(folder):
    model = tiny.MODELS["qwen2"]().to(torch.bfloat16)
    trainer = trained(folder, model=model, cast_lm_head_to_fp32=True, learning_rate=0.1)
    assert trainer.model.lm_head.weight.dtype == torch.float32


def told_to_the_reward(folder):
    def reward(completions, trainer_state, log_extra, log_metric, **columns):
        assert trainer_state.global_step >= 0
        log_extra("beginning", [text[0]["content"][:5] for text in completions])
        log_metric("custom", 0.75)
        return lengths(completions)

    with contextlib.redirect_stdout(io.StringIO()):  # the table of completions
        trainer = trained(folder, reward, log_completions=True)
    assert "beginning" in trainer._logs["extra"] and "custom" in logged(trainer)


class Holds(NamedTuple):
    """A question that BRPO answers as TRL does.

    Attributes:
        asked: What TRL's tests ask.
        by: Settings to train with, or a function of a folder that trains and looks.
        note: What is different, if anything.
    """

    asked: str
    by: dict[str, Any] | Callable[[Path], None]
    note: str = ""


HOLDS = (
    Holds("models of several families train", families),
    Holds("prompts are texts or conversations", prompts, "completions are so as well"),
    Holds("every loss that weighs tokens", loss_types, "by default `dr_grpo`, as the method"),
    Holds("an iterable dataset", streamed),
    Holds("evaluation on a dataset, or on several by name", evaluated),
    Holds("evaluation before the first update, in groups of another size", evaluated_at_the_start),
    Holds("several iterations on one generation", {"num_iterations": 2}),
    Holds("several steps on one generation", {"steps_per_generation": 2, "max_steps": 4}),
    Holds("adapters, by config or made before, with gradient checkpointing", adapters),
    Holds("a reward model, alone or beside a function", reward_model, "it reads every summary"),
    Holds("several rewards with weights", several_rewards),
    Holds("an async reward beside one that is not", later_reward),
    Holds("a reward that abstains (None)", abstaining, "where all abstain, nothing moves"),
    Holds("further columns of the dataset reach the reward", more_columns),
    Holds(
        "KL to a reference, fixed or in step, with its bias corrected or not",
        reference,
        "the model comes by name or folder, where the reference is loaded from",
    ),
    Holds("padding to a multiple", {"pad_to_multiple_of": 8}),
    Holds("a head in float32", float_head),
    Holds("an entropy bonus, static or adaptive", entropy_bonus),
    Holds("only the tokens of highest entropy are trained", {"top_entropy_quantile": 0.2}),
    Holds("sampling by `top_p`, `top_k`, `min_p`", {"top_p": 0.9, "top_k": 20, "min_p": 0.01}),
    Holds(
        "a group that is larger than a batch",
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    ),
    Holds("two-sided clipping (`delta`)", {"delta": 2.0}),
    Holds("several workers of the dataloader", {"dataloader_num_workers": 2}),
    Holds("the reward sees the trainer's state and logs", told_to_the_reward, "one row a tree"),
)


@pytest.mark.slow
@pytest.mark.parametrize("row", HOLDS, ids=lambda row: row.asked)
def test_it_holds(tmp_path, row):
    if callable(row.by):
        row.by(tmp_path)
    else:
        trained(tmp_path, **row.by)


# --- what is refused -----------------------------------------------------------------------------


class Refused(NamedTuple):
    """A question that BRPO answers with an error before any work.

    Attributes:
        asked: What TRL's tests ask.
        by: Arguments of `trainer_of` that ask for it.
        says: What the error says.
        why: The reason.
    """

    asked: str
    by: dict[str, Any]
    says: str
    why: str


ONE_RATIO = "a row is a tree, so one ratio would be for all its branches"
NO_SPREAD = "the method never divides by a standard deviation"
IN_TWO_PHASES = "thinking and summaries are sampled in two phases, by our own engine"
NOT_OURS = "a tree has no turns: rollouts are thinkings with summaries"

REFUSED = (
    Refused("the defaults alone", {"budgets": [2000, 8000]}, "256|context|positions",
            "budgets must fit the model's context"),
    Refused("rewards scaled by the group", {"scale_rewards": "group"}, "'none'", NO_SPREAD),
    Refused("rewards scaled by the batch", {"scale_rewards": "batch"}, "'none'", NO_SPREAD),
    Refused("rewards normalized, then summed",
            {"multi_objective_aggregation": "normalize_then_sum"}, "sum_then_normalize", NO_SPREAD),
    Refused("the loss `luspo`", {"loss_type": "luspo"}, "expected 'dr_grpo'", ONE_RATIO),
    Refused("the loss `vespo`", {"loss_type": "vespo"}, "expected 'dr_grpo'", ONE_RATIO),
    Refused("importance sampling by sequence", {"importance_sampling_level": "sequence"},
            "expected 'token'", ONE_RATIO),
    Refused("an off-policy mask", {"off_policy_mask_threshold": 0.5}, "expected None", ONE_RATIO),
    Refused("truncated completions masked", {"mask_truncated_completions": True}, "expected False",
            "a thinking that is cut is what is trained"),
    Refused("a repetition penalty", {"repetition_penalty": 1.1}, "expected at most 1",
            IN_TWO_PHASES),
    Refused("other arguments of generation", {"generation_kwargs": {"num_beams": 2}},
            "Set temperature", IN_TWO_PHASES),
    Refused("continuous batching", {"use_transformers_continuous_batching": True},
            "expected False", IN_TWO_PHASES),
    Refused("the Liger kernel", {"use_liger_kernel": True}, "expected False",
            "it knows no mask of a tree"),
    Refused("answers by a grammar", {"use_vllm": True, "vllm_structured_outputs_regex": "[0-9]"},
            "expected None", IN_TWO_PHASES),
    Refused("tools", {"tools": [len]}, "unexpected keyword argument 'tools'", NOT_OURS),
    Refused("environments", {"environment_factory": dict}, "unexpected keyword", NOT_OURS),
    Refused("a rollout function of one's own", {"rollout_func": len}, "unexpected keyword",
            NOT_OURS),
    Refused("images", {"data": Dataset.from_dict({"prompt": ["a"] * 8, "image": ["b"] * 8})},
            "trees are text only", "packed trees are text"),
    Refused("no reward", {"reward": []}, "no reward function was given",
            "there is nothing to learn"),
    Refused("tokenizers of rewards in another number",
            {"reward": [classifier(), classifier()],
             "reward_processing_classes": [tiny.tokenizer()]},
            "(?i)number of reward processing classes", "TRL's own check"),
)  # fmt: skip


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.asked)
def test_it_is_refused_before_any_work(tmp_path, row):
    with pytest.raises((ValueError, TypeError), match=row.says):
        trainer_of(tmp_path, **row.by)


# --- the page ------------------------------------------------------------------------------------


def page() -> str:
    """docs/trl.md."""
    lines = [
        "# BRPO and TRL's own tests",
        "",
        "`BRPOTrainer` is a `GRPOTrainer`. What TRL's tests ask of that one (TRL's repository,",
        "`tests/test_grpo_trainer.py`) is asked of it on tiny models by",
        "`tests/train/test_trl_grpo.py`, which also makes this page. Rollouts by vLLM have tests",
        "of their own (`make test-vllm`).",
        "",
        "## It holds",
        "| asked | different here |",
        "|---|---|",
        *(f"| {row.asked} | {row.note} |" for row in HOLDS),
        "",
        "## It is refused, before any work",
        "| asked | why |",
        "|---|---|",
        *(f"| {row.asked} | {row.why} |" for row in REFUSED),
        "",
    ]
    return "\n".join(lines)


def test_the_page_is_made_from_the_rows():
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "python tests/train/test_trl_grpo.py > docs/trl.md"
    )


if __name__ == "__main__":
    sys.stdout.write(page())
