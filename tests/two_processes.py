"""The runs of test_distributed.py, one after another, on whatever processes there are.

`torchrun --nproc-per-node 2 tests/two_processes.py FOLDER`
"""

import sys
from pathlib import Path

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


def main(folder):
    import os

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    for name, settings in RUNS.items():
        trainer = with_common_trees(make_trainer(f"{folder}/{name}", processes, **settings))
        assert trainer.accelerator.num_processes == processes
        trainer.train()
        trainer.save_model(f"{folder}/{name}/model")
    # Sampled rollouts: each process has a random state of its own, which a checkpoint holds.
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    make_trainer(f"{folder}/whole", processes, **saving).train()
    resumed = make_trainer(f"{folder}/resumed", processes, **saving)
    resumed.train(resume_from_checkpoint=f"{folder}/whole/checkpoint-1")


if __name__ == "__main__":
    main(sys.argv[1])
