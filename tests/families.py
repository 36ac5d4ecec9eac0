"""Small tokenizers with the special tokens and the chat templates of common families of models."""

from pathlib import Path

import torch
import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
# Family → (template of TRL's, special tokens, ordinary added tokens, BOS, EOS, padding).
FAMILIES = {
    "qwen2.5": ("qwen2_5", ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), (),
                None, "<|im_end|>", "<|endoftext|>"),
    "qwen3": ("qwen3", ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), ("<think>", "</think>"),
              None, "<|im_end|>", "<|endoftext|>"),
    "r1-distill": ("deepseek_r1_distill",
                   ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>",
                    "<｜Assistant｜>"),
                   ("<think>", "</think>"),
                   "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "llama3": ("llama3", ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
                          "<|end_header_id|>", "<|eot_id|>"), (),
               "<|begin_of_text|>", "<|eot_id|>", "!"),
    "gemma3": ("gemma3", ("<pad>", "<eos>", "<bos>", "<unk>"),
               ("<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>", "<pad>"),
    "phi3": ("phi3", ("<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>", "<|system|>"), (),
             None, "<|endoftext|>", "<|endoftext|>"),
    "gpt-oss": ("gptoss", ("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|channel|>",
                           "<|start|>", "<|end|>", "<|message|>", "<|call|>"), (),
                "<|startoftext|>", "<|return|>", "<|endoftext|>"),
    "mistral": ("{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] "
                "{{ m.content }} [/INST]{% else %}{{ m.content }}{{ eos_token }}{% endif %}"
                "{% endfor %}", ("<s>", "</s>", "[INST]", "[/INST]"), (), "<s>", "</s>", "</s>"),
    "magistral": ("{{ bos_token }}{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}"
                  "{# answers begin with [THINK]…[/THINK] #}",
                  ("<s>", "</s>", "[INST]", "[/INST]", "[THINK]", "[/THINK]"), (),
                  "<s>", "</s>", "</s>"),
}  # fmt: skip
# `</think>` is written with tokens that hold what stands beside it: `.<`, `/`, `think`, `>\n\n`.
MERGES = (("i", "n"), ("t", "h"), ("th", "in"), ("thin", "k"), (".", "<"), (">", "Ċ"), (">Ċ", "Ċ"))


def tokenizer(family, adds_eos=False):
    """The family's tokenizer: bytes, a few merges, its special tokens; BOS where it has one."""
    name, special, added, bos, eos, pad = FAMILIES[family]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(a + b for a, b in MERGES)]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, list(MERGES)))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True) for text in special])
    made.add_tokens([AddedToken(text, normalized=False) for text in added])
    if bos or adds_eos:
        single = f"{bos + ' ' if bos else ''}$A{' ' + eos if adds_eos else ''}"
        ends = [(text, made.token_to_id(text)) for text in (bos, eos) if text]
        made.post_processor = processors.TemplateProcessing(single=single, special_tokens=ends)
    file = TEMPLATES / f"{name}.jinja"
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=bos, eos_token=eos, pad_token=pad, padding_side="left",
        chat_template=file.read_text() if file.is_file() else name,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def model(tok, likely="", seed=0):
    """A tiny random Llama with the tokenizer's vocabulary.

    Args:
        tok: The tokenizer.
        likely: Characters that it writes more often than others, besides ends of a turn.
        seed: Of its weights.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tok), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
    )  # fmt: skip
    made = LlamaForCausalLM(config)
    head = torch.nn.Linear(32, len(tok), bias=True)
    with torch.no_grad():
        head.weight.mul_(5)
        head.bias.zero_()
        head.bias[tok.convert_tokens_to_ids(list(likely))] = 7.0
        head.bias[tok.eos_token_id] = 6.0
    made.set_output_embeddings(head)
    return made.eval()
