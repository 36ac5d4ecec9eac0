"""Models and tokenizers by name: `embedded`, a folder, or a name on the hub."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from anytime_lab.engines.embedded import MODEL_DIR

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
