"""One rank of a training run, for `torchrun tests/two_processes.py FOLDER SETTINGS`."""

import json
import sys

import tiny
import torch
from accelerate.utils import gather_object

from anytime_lab.trainer import BRPOTrainer


def with_common_trees(trainer):
    """The same trees however many processes share them: all are made everywhere, own ones kept."""

    def sample_trees(prompts):
        everything = gather_object(list(prompts))
        ids = [trainer.encode_prompt(prompt) for prompt in everything]
        args = trainer.args
        trees = tiny.random_trees(
            ids, args.budgets, args.num_summaries, trainer.tokens, seed=trainer.state.global_step
        )
        first = trainer.accelerator.process_index * len(prompts)
        return trees[first : first + len(prompts)]

    trainer.sample_trees = sample_trees
    return trainer


def main(folder, settings):
    tok = tiny.tokenizer()
    lora = settings.pop("lora", None)
    dtype = settings.pop("dtype", "float32")
    common = settings.pop("common_trees", True)
    if lora:
        from peft import LoraConfig

        lora = LoraConfig(task_type="CAUSAL_LM", **lora)
    config = tiny.config(folder, **settings)
    model = tiny.model(tok).to(getattr(torch, dtype))
    trainer = BRPOTrainer(
        model, tiny.digit_reward, config, tiny.problems(), processing_class=tok, peft_config=lora
    )
    if common:
        with_common_trees(trainer)
    trainer.train(resume_from_checkpoint=settings.get("resume_from_checkpoint"))
    trainer.save_model(f"{folder}/model")
    if trainer.accelerator.is_main_process:
        with open(f"{folder}/world.json", "w") as file:
            json.dump({"processes": trainer.accelerator.num_processes}, file)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
