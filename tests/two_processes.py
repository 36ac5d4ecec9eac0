"""The runs of test_distributed.py, one after another, on whatever processes there are.

`torchrun --nproc-per-node 2 tests/two_processes.py FOLDER [SETTINGS of accelerate with FSDP]`
"""

import os
import sys
from pathlib import Path

import pytest
import tiny
from accelerate.utils import gather_object

from anytime_lab.trainer import BRPOTrainer

ROWS = 12  # in groups of 4: with 6 rows on each of two processes the second group lies on both
COMMON = {
    "num_generations": 4,
    "max_steps": 2,
    "optim": "sgd",
    "learning_rate": 0.5,
    "lr_scheduler_type": "constant",
}
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
RUNS = {
    "plain": {"save_rollouts_steps": 1},
    "adapter": {
        "lora": LORA,
        "gradient_checkpointing": True,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 2,
    },
    "abstaining": {"beta": 0.1, "num_iterations": 2, "reward": "half"},
}


def half_the_rewards(prompts, completions, **columns):
    """Abstains on some summaries, by their text."""
    scores = tiny.digit_reward(prompts, completions)
    return [None if round(10 * score) % 3 == 0 else score for score in scores]


def with_common_trees(trainer):
    """The same trees however many processes share them: all are made everywhere, own ones kept."""

    def sample_trees(prompts):
        ids = [trainer.encode_prompt(prompt) for prompt in gather_object(list(prompts))]
        args = trainer.args
        trees = tiny.random_trees(
            ids, args.budgets, args.num_summaries, trainer.tokens, seed=trainer.state.global_step
        )
        first = trainer.accelerator.process_index * len(prompts)
        return trees[first : first + len(prompts)]

    trainer.sample_trees = sample_trees
    return trainer


def make_trainer(folder, processes, lora=None, reward=None, **settings):
    """A trainer of one of the runs; the weights come from a folder, as a reference needs."""
    if lora:
        from peft import LoraConfig

        lora = LoraConfig(**lora)
    rows = ROWS // processes // settings.get("gradient_accumulation_steps", 1)
    settings = {**COMMON, "per_device_train_batch_size": rows, **settings}
    if processes > 1:
        settings["ddp_backend"] = "gloo"
    return BRPOTrainer(
        str(Path(folder).parent / "start"),
        half_the_rewards if reward else tiny.digit_reward,
        tiny.config(folder, **settings),
        tiny.problems(),
        processing_class=tiny.tokenizer(),
        peft_config=lora,
    )


def share_out_weights(settings):
    """FSDP by a shipped file of accelerate's settings, on CPUs, where accelerate itself has none.

    It is torch's own FSDP over gloo: accelerate is told that the processes are of a kind for which
    it does shard, and that their device is the CPU.
    """
    import torch
    import torch.distributed
    from accelerate import PartialState
    from accelerate.commands import launch
    from accelerate.utils import DistributedType

    args = launch.launch_command_parser().parse_args(["--config_file", settings, "script.py"])
    args, *_ = launch._validate_launch_command(args)
    args.mixed_precision = "no"  # to be compared with one process
    environment = launch.prepare_multi_gpu_env(args)
    os.environ.update({k: str(v) for k, v in environment.items() if "FSDP" in k})
    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = lambda self, *_: ("gloo", DistributedType.MULTI_XPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))


def main(folder, settings=None):
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if settings:
        share_out_weights(settings)
    for name, run in RUNS.items():
        if settings and "beta" in run:
            with pytest.raises(ValueError, match="efficient_loading: false"):
                make_trainer(f"{folder}/{name}", processes, **run)
            os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
        trainer = with_common_trees(make_trainer(f"{folder}/{name}", processes, **run))
        assert trainer.accelerator.num_processes == processes
        assert bool(trainer.is_fsdp_enabled) == bool(settings)
        trainer.train()
        trainer.save_model(f"{folder}/{name}/model")
    # Sampled rollouts: each process has a random state of its own, which a checkpoint holds.
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    if settings:  # torch's sharded checkpoints need an optimizer with a state; copies have none
        saving |= {"optim": "adamw_torch", "learning_rate": 0.01}
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "true"
    trainer = make_trainer(f"{folder}/whole", processes, rollout_batch_size=1, **saving)
    trainer.train()
    # Processes need different numbers of forward passes, and none waits for the other.
    few = 1 + 4 * trainer.accelerator.process_index
    prompts = tiny.problems()["prompt"][:few]
    assert len(trainer.sample_trees(prompts)) == few
    resumed = make_trainer(f"{folder}/resumed", processes, rollout_batch_size=1, **saving)
    resumed.train(resume_from_checkpoint=f"{folder}/whole/checkpoint-1")


if __name__ == "__main__":
    main(*sys.argv[1:])
