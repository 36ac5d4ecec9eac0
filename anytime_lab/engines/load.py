"""Thinkers by name: the embedded model, any on disk or on the hub, or a server's."""

import os
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from anytime_lab.engines.base import Engine, Sampling
from anytime_lab.engines.hf import HFEngine, HFThinker
from anytime_lab.engines.server import CompletionsClient, ServerEngine, ServerThinker
from anytime_lab.engines.thoughts import Thinker, ThinkingError
from anytime_lab.engines.vllm import VLLMEngine
from anytime_lab.prompts import ThinkingTokens, detect_format, resolve_tokens

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


EMBEDDED = "embedded"


def model_path(name: str | Path) -> str:
    """Where a model lies: the shipped folder for `embedded`, else the name as it is.

    Raises:
        TypeError: the name is no text and no path.
        FileNotFoundError: the name looks like a folder, and there is none.
    """
    if not isinstance(name, str | os.PathLike) or not str(name):
        raise TypeError(
            f"the model is {name!r:.80}; give a folder that save_pretrained wrote, a name on the "
            'hub such as "Qwen/Qwen3-0.6B", or "embedded".'
        )
    if str(name) == EMBEDDED:
        return str(MODEL_DIR)
    looks_local = str(name).startswith((".", "/", "~")) or str(name).count("/") > 1
    path = Path(name).expanduser()
    if looks_local and not path.is_dir():
        raise FileNotFoundError(
            f"there is no model folder {str(name)!r} (looked in {Path.cwd()}). Give a folder that "
            'save_pretrained wrote, a name on the hub such as "Qwen/Qwen3-0.6B", or "embedded".'
        )
    return str(path) if path.is_dir() else str(name)


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, padding on the left."""
    return AutoTokenizer.from_pretrained(model_path(name), padding_side="left")


def load_model(
    name: str | Path, device: str | None = None, dtype: Any = None, **kwargs: Any
) -> PreTrainedModel:
    """A causal language model, ready to sample from.

    Args:
        name: `embedded`, a folder, or a name on the hub.
        device: By default the first CUDA device where there is one, else the CPU.
        dtype: By default fp32 on the CPU and what the checkpoint has elsewhere.
        **kwargs: For `from_pretrained`, such as `revision`.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("float32" if device == "cpu" else "auto")
    model = AutoModelForCausalLM.from_pretrained(model_path(name), dtype=dtype, **kwargs)
    return model.to(device).eval()


def load_engine(engine: str, model: str | Path, tokens: ThinkingTokens, **options: Any) -> Engine:
    """Something that samples rollout trees from a model.

    Args:
        engine: `hf` (the model in this process), `vllm` (vLLM in this process), or the URL of an
            OpenAI-compatible server, such as `http://localhost:8000`.
        model: `embedded`, a folder, or a name on the hub.
        tokens: The thinking format in the ids of the model's tokenizer.
        **options: `hf`: `batch_size` of `HFEngine`, and what `load_model` takes; `vllm`: what
            `vllm.LLM` takes; a URL: `served_name` (by default the model's name or folder), and
            what `ServerEngine` takes. Its key, if it wants one, stands in the environment variable
            OPENAI_API_KEY.

    Raises:
        ValueError: there is no such engine.
        ImportError: vLLM is not installed.
        ThinkingError: the server cannot be reached, or serves another model.
    """
    if engine == "hf":
        size = options.pop("batch_size", None)
        return HFEngine(load_model(model, **options), tokens, batch_size=size)
    if engine == "vllm":
        return VLLMEngine(model_path(model), tokens, **options)
    if engine.startswith(("http://", "https://")):
        options.setdefault("api_key", os.environ.get("OPENAI_API_KEY"))
        names = options.pop("served_name", None) or [str(model), model_path(model)]
        return ServerEngine(engine, tokens, model=names, **options)
    raise ValueError(
        f'engine is {engine!r}; expected "hf", "vllm", or the URL of an OpenAI-compatible server '
        'such as "http://localhost:8000".'
    )


def load_thinker(
    model: str, tokenizer: str = "", max_summary_tokens: int = 118, **kwargs: Any
) -> Thinker:
    """A model that can be asked for its answer while it thinks.

    Args:
        model: `embedded`, a folder, a name on the hub, or the URL of an OpenAI-compatible server
            (its key, if it wants one, in the environment variable OPENAI_API_KEY).
        tokenizer: For a server, where its model's tokenizer lies; the name that it serves if empty.
        max_summary_tokens: Most tokens sampled for a summary.
        **kwargs: For `ServerThinker`, or for `load_model`.

    Raises:
        ThinkingError: the server cannot be reached, or its tokenizer is not known.
        ValueError: the tokenizer lacks the think-end marker.
    """
    sampling = Sampling(max_summary_tokens=max_summary_tokens)
    if model.startswith(("http://", "https://")):
        client = CompletionsClient(model, os.environ.get("OPENAI_API_KEY"))
        served = kwargs.get("model") or next((m["id"] for m in client.models()), "")
        try:
            loaded = load_tokenizer(tokenizer or served)
        except (OSError, ValueError) as error:
            raise ThinkingError(
                f"no tokenizer was found at {tokenizer or served!r} for the model that {client.url}"
                " serves. Give its folder or its name on the hub as tokenizer."
            ) from error
        return ServerThinker(client, loaded, sampling=sampling, **kwargs)
    loaded = load_tokenizer(tokenizer or model)
    tokens = resolve_tokens(loaded, detect_format(loaded))
    engine = HFEngine(load_model(model, **kwargs), tokens)
    return HFThinker(engine, loaded, sampling=sampling, name=model)
