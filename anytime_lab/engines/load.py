"""The engine of an evaluation by its name: `hf`, `vllm`, or the URL of a server."""

import os
from pathlib import Path
from typing import Any

from anytime_lab.engines.base import Engine
from anytime_lab.engines.hf import HFEngine
from anytime_lab.engines.models import load_model, model_path
from anytime_lab.engines.server import ServerEngine
from anytime_lab.engines.vllm import VLLMEngine
from anytime_lab.prompts import ThinkingTokens


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
