"""vLLM rollouts in training, with TRL's vLLM object replaced by one that runs a transformers model.

`test_vllm.py` does the same with vLLM itself, where it is installed.
"""

import contextlib
import copy
import warnings

import pytest
import tiny
import torch

from anytime_lab.engines.hf import generate_rows
from anytime_lab.train.trainer import BRPOTrainer, LogprobMismatch


class Executor:
    def __init__(self):
        self.calls = []

    def wake_up(self, tags):
        self.calls.append(f"wake {tags[0]}")

    def sleep(self, level):
        self.calls.append(f"sleep {level}")


class StandIn:
    """As `trl.generation.vllm_generation.VLLMGeneration`, on a copy of the model."""

    mode = "colocate"

    def __init__(self, trainer, sleeps=False, syncs=True):
        self.trainer, self.syncs = trainer, syncs
        self.weights = copy.deepcopy(trainer.model.state_dict())
        self.enable_sleep_mode = self._llm_weights_sleeping = sleeps
        self.max_completion_length, self.generation_kwargs = 99, {}
        self.llm, self.asked = Executor(), []

    def sync_weights(self):
        self.llm.calls.append("sync")
        self._llm_weights_sleeping = False
        if self.syncs:
            self.weights = copy.deepcopy(self.trainer.model.state_dict())

    @contextlib.contextmanager
    def loaded(self):
        model = self.trainer.model
        now = copy.deepcopy(model.state_dict())
        model.load_state_dict(self.weights)
        yield model.eval()
        model.load_state_dict(now)
        model.train()

    def generate(self, prompts, images, num_generations, profiler=None):
        assert images is None and len(prompts) % num_generations == 0
        for first in range(0, len(prompts), num_generations):  # what the server mode relies on
            group = prompts[first : first + num_generations]
            assert group == [group[0]] * num_generations
        self.asked.append((len(prompts), num_generations, self.max_completion_length))
        assert self.generation_kwargs["ignore_eos"]
        if self.enable_sleep_mode:
            if self._llm_weights_sleeping:
                self.sync_weights()
            self.llm.wake_up(tags=["kv_cache"])
        self.llm.calls.append("generate")
        with self.loaded() as model, torch.no_grad():
            tokens = self.trainer.tokens
            made = generate_rows(
                model, tokens, prompts, self.max_completion_length, self.trainer.sampling,
                tokens.close_id in self.generation_kwargs["stop_token_ids"],
            )  # fmt: skip
        if self.enable_sleep_mode:
            self.llm.sleep(level=2)
            self._llm_weights_sleeping = True
        logprobs = [[[value] for value in one.logprobs] for one in made]
        return prompts, [list(one.tokens) for one in made], logprobs, None


def build(tmp_path, standing=None, **settings):
    tok = tiny.tokenizer()
    trainer = BRPOTrainer(
        model=tiny.model(tok),
        reward_funcs=tiny.digit_reward,
        args=tiny.config(tmp_path, vllm_importance_sampling_correction=True, **settings),
        train_dataset=tiny.problems(),
        processing_class=tok,
    )
    trainer.use_vllm, trainer._last_loaded_step = True, -1
    trainer.vllm_generation = StandIn(trainer, **(standing or {}))
    return trainer


def test_thinkings_then_summaries_and_the_importance_ratio_is_one(tmp_path):
    trainer = build(tmp_path, max_steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", LogprobMismatch)
        trainer.train()
    # 8 thinkings in groups of 4 of 12 tokens; 8 x 3 budgets x 2 summaries
    room = trainer.sampling.max_summary_tokens
    assert trainer.vllm_generation.asked == [(8, 4, 12), (48, 2, room)] * 3
    lines = [line for line in trainer.state.log_history if "logprobs/difference_mean" in line]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["logprobs/difference_max"] < 1e-4 for line in lines)
    assert all(
        line[f"sampling/importance_sampling_ratio/{end}"] == pytest.approx(1, abs=1e-4)
        for line in lines
        for end in ("min", "mean", "max")
    )


@pytest.mark.parametrize("correction", [True, False])
def test_an_engine_with_old_weights_is_warned_of_loudly(tmp_path, correction):
    trainer = build(tmp_path, {"syncs": False}, max_steps=3, learning_rate=0.03)
    trainer.vllm_importance_sampling_correction = correction
    with pytest.warns(LogprobMismatch, match="STEP [12].*another policy"):
        trainer.train()
    first, *later = [
        line["logprobs/difference_mean"]
        for line in trainer.state.log_history
        if "logprobs/difference_mean" in line
    ]
    assert first < 1e-4
    assert min(later) > 0.05


def test_the_comparison_is_made_each_so_many_steps(tmp_path):
    for steps, compared in ((2, [1, 3]), (0, [])):
        trainer = build(tmp_path, max_steps=4, check_logprobs_steps=steps)
        trainer.train()
        lines = [x["step"] for x in trainer.state.log_history if "logprobs/difference_max" in x]
        assert lines == compared  # step n is logged after the rollouts of step n - 1


def test_a_sleeping_engine_stays_awake_between_the_phases(tmp_path):
    trainer = build(tmp_path, {"sleeps": True}, max_steps=2)
    trainer.train()
    step = ["sync", "wake kv_cache", "generate", "wake kv_cache", "generate", "sleep 2"]
    assert trainer.vllm_generation.llm.calls == step * 2


def test_the_difference_is_over_counted_tokens_only(tmp_path):
    trainer = build(tmp_path)
    nan = float("nan")
    counted = torch.tensor([[1, 1, 0], [1, 1, 1]])
    batch = {
        "old_per_token_logps": torch.tensor([[-1.0, -2.0, 0.0], [-1.0, -1.0, -1.0]]),
        "sampling_per_token_logps": torch.tensor([[-1.5, -2.0, -9.0], [-1.0, nan, -2.0]]),
        "completion_mask": counted,
        "tool_mask": torch.ones_like(counted),
    }
    with pytest.warns(LogprobMismatch, match="0.375 nats a token on average .largest 1;"):
        trainer._check_logprobs(batch, "train")
    batch["tool_mask"] *= 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", LogprobMismatch)
        trainer._check_logprobs(batch, "train")


def test_a_model_without_a_name_is_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="no name or folder that vLLM could load"):
        BRPOTrainer(
            model=tiny.model(),
            reward_funcs=tiny.digit_reward,
            args=tiny.config(tmp_path, use_vllm=True),
            train_dataset=tiny.problems(),
            processing_class=tiny.tokenizer(),
        )
