"""The seams of TRL and transformers that the trainer stands on."""

import inspect
from importlib import metadata

import pytest
import tiny
import trl
from packaging.requirements import Requirement
from transformers import Trainer
from transformers.trainer_utils import rotate_checkpoints
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from anytime_lab.train.trainer import BRPOTrainer

SIGNATURES = {
    "_generate": "self prompts",
    "_calculate_rewards": "self inputs prompts completions completion_ids_list",
    "_generate_and_score_completions": "self inputs",
    "_compute_loss": "self model inputs",
    "training_step": "self model inputs num_items_in_batch",
    "_prepare_inputs": "self generation_batch",
    "_save_checkpoint": "self model trial",
}


def parameters(function):
    return list(inspect.signature(function).parameters)


def test_the_pin_is_trl_1_16():
    lines = [Requirement(line) for line in metadata.requires("anytime-lab")]
    (pin,) = [one for one in lines if one.name == "trl"]
    assert str(pin.specifier) == "==1.16.*"
    assert pin.specifier.contains(trl.__version__)


@pytest.mark.parametrize(("name", "wanted"), SIGNATURES.items())
def test_an_overridden_method_has_the_arguments_that_are_handed_on(name, wanted):
    assert parameters(getattr(GRPOTrainer, name)) == wanted.split()


def test_every_override_has_something_to_override():
    """A renamed seam would leave dead code and plain GRPO behind, without an error."""
    ours = {name for name, value in vars(BRPOTrainer).items() if inspect.isfunction(value)}
    overridden = {name for name in ours if hasattr(GRPOTrainer, name)}
    assert overridden >= {*SIGNATURES} - {"_generate", "_prepare_inputs"}
    assert {"_run_epoch", "_get_grad_norm", "train"} <= overridden


def test_the_log_probs_of_rows_are_asked_for_as_the_override_expects():
    wanted = ["self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size",
              "compute_entropy", "compute_aux_loss"]  # fmt: skip
    name = "_get_per_token_logps_and_entropies"
    assert parameters(getattr(GRPOTrainer, name))[:8] == wanted
    assert parameters(getattr(BRPOTrainer, name))[:6] == wanted[:6]


def test_the_constructor_takes_a_rollout_function_and_what_is_passed_on():
    wanted = {"model", "reward_funcs", "args", "train_dataset", "eval_dataset", "processing_class",
              "reward_processing_classes", "callbacks", "optimizers", "quantization_config",
              "peft_config", "rollout_func"}  # fmt: skip
    assert wanted <= set(parameters(GRPOTrainer.__init__))


def test_settings_that_are_checked_exist():
    wanted = {"steps_per_generation", "generation_batch_size", "num_iterations", "num_generations",
              "num_generations_eval", "max_completion_length", "scale_rewards", "loss_type",
              "importance_sampling_level", "mask_truncated_completions", "use_liger_kernel",
              "use_vllm", "vllm_importance_sampling_mode", "multi_objective_aggregation",
              "off_policy_mask_threshold", "repetition_penalty", "generation_kwargs",
              "cache_implementation", "ds3_gather_for_generation"}  # fmt: skip
    assert wanted <= GRPOConfig.__dataclass_fields__.keys()


def test_transformers_saves_and_runs_through_the_seams_of_checkpoints():
    assert {"model", "epoch", "train_dataloader"} <= set(parameters(Trainer._run_epoch))
    assert parameters(Trainer._get_grad_norm) == ["self", "model", "grad_norm"]
    assert parameters(rotate_checkpoints)[:4] == [
        "output_dir", "save_total_limit", "best_model_checkpoint", "use_mtime"
    ]  # fmt: skip
    assert {"temperature", "outputs"} <= set(parameters(add_fused_lm_head))


def test_trl_scores_a_batch_into_the_keys_that_the_loss_reads(tmp_path, monkeypatch):
    """The dict of TRL's own method, before the trees join it, and after."""
    tok, kept = tiny.tokenizer(), {}
    trainer = BRPOTrainer(
        tiny.model(tok), tiny.digit_reward, tiny.config(tmp_path), tiny.problems(),
        processing_class=tok,
    )  # fmt: skip
    inner = GRPOTrainer._generate_and_score_completions

    def spy(self, inputs):
        kept.update(inner(self, inputs))
        return dict(kept)

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", spy)
    trainer.model.train()
    rows = [row for row in tiny.problems().select(range(2)) for _ in range(4)]
    output = trainer._generate_and_score_completions(rows)
    own = {"tree_leaf", "tree_branch", "tree_kept"}
    assert {"prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages",
            "tool_mask", "num_items_in_batch"} <= kept.keys()  # fmt: skip
    assert output.keys() - kept.keys() == own
    size, columns = kept["completion_ids"].shape
    assert kept["advantages"].shape == (size,)  # replaced by one a token
    for name in ("advantages", "tool_mask", "completion_mask", *own):
        assert output[name].shape == (size, columns), name
    # TRL shuffles and splits what it is given along the rows.
    assert all(v.ndim == 0 or len(v) == size for v in output.values() if hasattr(v, "ndim"))
