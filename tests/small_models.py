"""Small models of several families whose greedy thinkings end in every way."""

import tiny
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from anytime_lab.prompts import COUNTDOWN, resolve_tokens

TOK = tiny.tokenizer()
TOKENS = resolve_tokens(TOK, COUNTDOWN)
SMALL = {
    "vocab_size": len(TOK),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": TOK.pad_token_id,
    "eos_token_id": TOK.eos_token_id,
    "bos_token_id": None,
}
MODELS = {
    "qwen3": lambda: tiny.model(TOK),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
}


def ending(model):
    """Make greedy thinkings end in every way: raise the head's rows of the end markers."""
    torch.manual_seed(5)
    head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=True)
    with torch.no_grad():
        head.weight.mul_(8)
        head.bias.zero_()
        head.bias[[TOKENS.close_id, TOK.eos_token_id]] = 4.0
    model.set_output_embeddings(head)
    model.config.tie_word_embeddings = False
    return model.eval()


def build(name="qwen3", attention="sdpa"):
    torch.manual_seed(1)
    model = ending(MODELS[name]())
    model.set_attn_implementation(attention)
    return model
