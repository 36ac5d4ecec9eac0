"""Tiny models, the tokenizer and a few problems, for tests that need a model."""

import random

import torch
from datasets import Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from anytime_lab.engines.load import MODEL_DIR, load_tokenizer
from anytime_lab.prompts import COUNTDOWN, resolve_tokens
from anytime_lab.train.config import BRPOConfig
from anytime_lab.tree import Leaf, Tree

BUDGETS = [4, 8, 12]
NUMBERS = 12  # problems


def tokenizer():
    """The embedded task's tokenizer (about 220 tokens)."""
    return load_tokenizer("embedded")


def model(tok=None, seed=0, layers=2):
    """Random weights, 2 layers of 32: answers are noise, but thinkings differ in length."""
    torch.manual_seed(seed)
    size = {"hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 1}
    size |= {"num_key_value_heads": 1, "num_hidden_layers": layers}
    size |= {"layer_types": ["full_attention"] * layers, "use_cache": True, "name_or_path": ""}
    made = Qwen3ForCausalLM(Qwen3Config.from_pretrained(MODEL_DIR, **size))
    with torch.no_grad():
        # Larger than the initial scale, so that log-probs are far from uniform.
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    return made


SMALL = {
    "vocab_size": len(tokenizer()),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": tokenizer().pad_token_id,
    "eos_token_id": tokenizer().eos_token_id,
    "bos_token_id": None,
}
MODELS = {
    "qwen3": model,
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
}


def ending(made):
    """Make greedy thinkings end in every way: raise the head's rows of the end markers."""
    tok = tokenizer()
    close_id = resolve_tokens(tok, COUNTDOWN).close_id
    torch.manual_seed(5)
    head = torch.nn.Linear(made.config.hidden_size, made.config.vocab_size, bias=True)
    with torch.no_grad():
        head.weight.mul_(8)
        head.bias.zero_()
        head.bias[[close_id, tok.eos_token_id]] = 4.0
    made.set_output_embeddings(head)
    made.config.tie_word_embeddings = False
    return made.eval()


def build(name="qwen3", attention="sdpa"):
    """A small model of a family whose greedy thinkings end in every way."""
    torch.manual_seed(1)
    made = ending(MODELS[name]())
    made.set_attn_implementation(attention)
    return made


def problems(count=NUMBERS, conversational=True):
    """Prompts of different lengths with an answer each."""
    texts = [f"Reach {n + 5} with {', '.join(map(str, range(1, 2 + n % 4)))}" for n in range(count)]
    prompts = [[{"role": "user", "content": t}] for t in texts] if conversational else texts
    return Dataset.from_dict({"prompt": prompts, "answer": [str(n) for n in range(count)]})


def config(output_dir, **settings):
    """Three budgets, two summaries, groups of 4, two problems a step."""
    defaults = {
        "output_dir": str(output_dir),
        "budgets": BUDGETS,
        "num_summaries": 2,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_summary_tokens": 8,
        "learning_rate": 1e-3,
        "max_steps": 2,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    return BRPOConfig(**{**defaults, **settings})


def digit_reward(prompts, completions, **columns):
    """Between 0 and 1, by the text alone: spread enough for advantages of both signs."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [(sum(map(ord, text)) % 11) / 10 for text in texts]


def random_trees(prompts, budgets, num_summaries, tokens, seed=0, vocab=200):
    """Trees of random tokens that end in every way: shorter than a budget, at one, cut, by EOS.

    Args:
        prompts: token ids of each tree's prompt.
        tokens: ThinkingTokens.
    """
    rng = random.Random(seed)
    special = {tokens.close_id, tokens.pad_id, *tokens.eos_ids}
    words = [t for t in range(vocab) if t not in special]
    trees = []
    for number, prompt in enumerate(prompts):
        end = ("length", "closed", "closed", "eos")[number % 4]
        length = budgets[-1] if end == "length" else rng.randint(1, budgets[-1])
        thinking = [rng.choice(words) for _ in range(length)]
        if end != "length":
            thinking[-1] = tokens.close_id if end == "closed" else min(tokens.eos_ids)
        leaves = []
        for cut in (min(budget, length) for budget in budgets):
            for _ in range(num_summaries):
                summary = [rng.choice(words) for _ in range(rng.randint(1, 4))]
                finished = rng.random() < 0.8
                summary += [min(tokens.eos_ids)] * finished
                leaves.append(
                    Leaf(
                        cut=cut,
                        forced=tokens.forced(end, cut, length),
                        summary=tuple(summary),
                        logprobs=(-1.0,) * len(summary),
                        finished=finished,
                    )
                )
        trees.append(
            Tree(
                prompt=tuple(prompt),
                thinking=tuple(thinking),
                logprobs=(-1.0,) * length,
                end=end,
                leaves=tuple(leaves),
            )
        )
    return trees


def with_trees(trainer, seed=0):
    """Let a trainer take random trees (the same for the same prompts) instead of sampling."""

    def sample_trees(prompts):
        ids = [trainer.encode_prompt(prompt) for prompt in prompts]
        args = trainer.args
        return random_trees(ids, args.budgets, args.num_summaries, trainer.tokens, seed)

    trainer.sample_trees = sample_trees
    return trainer
