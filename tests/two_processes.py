"""The runs of test_distributed.py, one after another, on whatever processes there are."""

import os
import sys
from pathlib import Path

import killable
import pytest
import tiny
import torch
import torch.distributed
from accelerate.utils import gather_object

from anytime_lab.train.trainer import BRPOTrainer

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
    """FSDP or DeepSpeed by a shipped file of accelerate's settings, on CPUs, where it has neither.

    It is their own code over gloo: accelerate is told that the processes are of a kind for which
    it does shard, and that their device is the CPU.
    """
    from accelerate import PartialState
    from accelerate.commands import launch
    from accelerate.utils import DistributedType

    args = launch.launch_command_parser().parse_args(["--config_file", settings, "script.py"])
    args, defaults, _ = launch._validate_launch_command(args)
    args.mixed_precision = "no"  # to be compared with one process
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        _, environment = launch.prepare_deepspeed_cmd_env(args)
    else:
        environment = launch.prepare_multi_gpu_env(args)
        torch.distributed.init_process_group("gloo")
    chosen = {
        k: str(v) for k, v in environment.items() if "FSDP" in k or "DEEPSPEED" in k or "_DS_" in k
    }
    os.environ.update(chosen)
    PartialState._prepare_backend = lambda self, *_: ("gloo", DistributedType.MULTI_XPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))


def main(folder, settings=None):
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    common = {}
    if settings:
        share_out_weights(settings)
        common["use_cpu"] = False  # with it accelerate shards nothing
    for name, run in RUNS.items():
        run = {**common, **run}
        if "beta" in run and os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING") == "true":
            with pytest.raises(ValueError, match="efficient_loading: false"):
                make_trainer(f"{folder}/{name}", processes, **run)
            os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
        trainer = with_common_trees(make_trainer(f"{folder}/{name}", processes, **run))
        assert trainer.accelerator.num_processes == processes
        sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        assert bool(sharded) == bool(settings)
        trainer.train()
        trainer.save_model(f"{folder}/{name}/model")
    # Sampled rollouts: each process has a random state of its own, which a checkpoint holds.
    saving = {
        **common, "save_strategy": "steps", "save_steps": 1, "max_steps": 3,
        "rollout_batch_size": 1,
    }  # fmt: skip
    if settings:  # torch's sharded checkpoints need an optimizer with a state; copies have none
        saving |= {"optim": "adamw_torch", "learning_rate": 0.01}
    trainer = make_trainer(f"{folder}/whole", processes, **saving)
    trainer.train()
    # Processes need different numbers of forward passes, and none waits for the other.
    few = 1 + 4 * trainer.accelerator.process_index
    prompts = tiny.problems()["prompt"][:few]
    assert len(trainer.sample_trees(prompts)) == few
    resumed = make_trainer(f"{folder}/resumed", processes, **saving)
    resumed.train(resume_from_checkpoint=f"{folder}/whole/checkpoint-1")
    if processes > 1:
        # Freeing what holds a gloo group may wait for gloo's thread, while that waits for the
        # interpreter (torch 2.13): nothing is freed, all end at once as soon as all are here.
        torch.distributed.barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def main_of(rank, port, folder, settings=None):
    """One of the two processes, in the environment that torchrun makes, which is all it does here.

    accelerate launch hands CPU processes to MPI; torchrun is what it uses for devices.
    """
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DS_ACCELERATOR": "cpu"}
    os.environ.update({name: str(value) for name, value in told.items()})
    with killable.quiet(folder):
        main(folder, settings)
