"""The model that ships with the package: a 1 M-parameter Qwen3 for Countdown, and its tokenizer.

Whole numbers up to 99 are one token each, so that a trial such as `7-6=1, 1*3=3 ✗` costs twelve
tokens. Everything else about it is as for a large model: chat template, thinking tags, forced
header, `\\boxed{}`.
"""

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

MODEL_DIR = Path(__file__).parents[1] / "embedded_model"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)

# Pieces longer than one character that are one token each, besides the numbers.
PIECES = (
    "system\n",
    "user\n",
    "assistant\n",
    "Reach ",
    " with ",
    ", ",
    " ✓\n",
    " ✗\n",
    "...\n\n...\n\n",
    "\n\n**Final Answer**\n",
    "\\boxed{",
)
SPECIALS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<unk>")
MARKERS = ("<think>\n", "</think>")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer: numbers 0…99, the pieces of the task, and any ASCII character by itself."""
    characters = [chr(c) for c in range(32, 127)] + ["\n"]
    words = [*SPECIALS, *MARKERS, *PIECES, *(str(n) for n in range(100)), *characters]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    longest_first = sorted(PIECES, key=len, reverse=True)
    pattern = "|".join([*map(_escape, longest_first), "[1-9][0-9](?![0-9])", "[0-9]", r"[\s\S]"])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    # Thinking tags are plain tokens, as in Qwen3: decoding keeps them.
    tokenizer.add_tokens([AddedToken(marker, normalized=False) for marker in MARKERS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
    )


def _escape(text: str) -> str:
    return "".join(f"\\{c}" if c in ".*\\{}^$|()[]?+" else c for c in text)


def build_model(
    tokenizer: PreTrainedTokenizerFast, hidden_size: int = 128, layers: int = 4
) -> Qwen3ForCausalLM:
    """A fresh Qwen3 of the embedded size with random weights (global torch RNG)."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=max(1, hidden_size // 64),
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return Qwen3ForCausalLM(config)


def load_embedded_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the shipped checkpoint."""
    return PreTrainedTokenizerFast.from_pretrained(MODEL_DIR)


def load_embedded_model() -> Qwen3ForCausalLM:
    """The shipped, warm-started checkpoint in fp32 (notebook `01_warm_start` reproduces it)."""
    return Qwen3ForCausalLM.from_pretrained(MODEL_DIR, dtype="float32")
