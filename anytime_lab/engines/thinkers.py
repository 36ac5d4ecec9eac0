"""Thinkers by name: the embedded model, any on disk or on the hub, or a server's."""

import os
from typing import Any

from anytime_lab.engines.base import Sampling
from anytime_lab.engines.completions import CompletionsClient
from anytime_lab.engines.hf import HFEngine
from anytime_lab.engines.hf_thought import HFThinker
from anytime_lab.engines.models import load_model, load_tokenizer
from anytime_lab.engines.server_thought import ServerThinker
from anytime_lab.engines.thoughts import Thinker, ThinkingError
from anytime_lab.prompts import detect_format, resolve_tokens


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
