"""Trees from vLLM in this process: two phases on its prefix cache."""

import logging
from pathlib import Path
from typing import Any

from anytime_lab.engines.base import Continuation, Engine, Prefix, Sampling
from anytime_lab.prompts import ThinkingTokens

logger = logging.getLogger(__name__)

# What this engine decides itself; another value would change what the records mean.
FIXED = {
    "logprobs_mode": "processed_logprobs",  # at the sampling temperature, not at 1
    "enable_prefix_caching": True,
    "generation_config": "vllm",  # no sampling defaults from the checkpoint
}


class VLLMEngine(Engine):
    """Samples trees with vLLM, without a server.

    Log-probs are at the sampling temperature (at 1 where that is 0). vLLM has them after top-p,
    top-k and min-p only: with one of these they are those of the tokens that the filter keeps,
    while `HFEngine` reports them before it.

    Args:
        model: A folder or a name on the hub.
        tokens: The thinking format in the ids of its tokenizer.
        **options: For `vllm.LLM`, such as `max_model_len`, `gpu_memory_utilization`,
            `tensor_parallel_size` or `dtype`.
    """

    def __init__(self, model: str | Path, tokens: ThinkingTokens, **options: Any):
        for name, value in FIXED.items():
            if options.get(name, value) != value:
                raise ValueError(
                    f"{name} is {options[name]!r}; this engine needs {value!r}. Leave it out."
                )
        try:
            from vllm import LLM
            from vllm.platforms import current_platform
        except ImportError as error:
            raise ImportError(
                f"vLLM cannot be imported ({error}). Install it: pip install 'anytime-lab[vllm]' "
                "(Linux with a CUDA device), or use engine='hf'."
            ) from error
        if current_platform.is_cpu():  # its seeded sampler fails on prompts read in pieces
            options.setdefault("enable_chunked_prefill", False)
        self.tokens = tokens
        self._llm = LLM(str(model), **{**options, **FIXED})
        self.context_length = self._llm.llm_engine.model_config.max_model_len

    def complete(
        self, prefixes: list[Prefix], limit: int, thinks: bool, sampling: Sampling
    ) -> list[Continuation]:
        """See `Engine.complete`. Without a seed the engine's own random state decides."""
        from vllm import SamplingParams

        if thinks:
            warn_of_filters(sampling)
        stops = self.tokens.stops(thinks)
        settings = [
            SamplingParams(
                n=prefix.count,
                seed=prefix.seed,
                max_tokens=limit,
                logprobs=0,
                detokenize=bool(stops["stop"]),
                **stops,
                **sampling.filters,
            )
            for prefix in prefixes
        ]
        requests = [{"prompt_token_ids": list(prefix.ids)} for prefix in prefixes]
        outputs = self._llm.generate(requests, settings, use_tqdm=False)
        return [
            Continuation(
                tuple(one.token_ids),
                tuple(at[i].logprob for i, at in zip(one.token_ids, one.logprobs, strict=True)),
            )
            for output in outputs
            for one in sorted(output.outputs, key=lambda one: one.index)
        ]


def warn_of_filters(sampling: Sampling) -> None:
    """Say that log-probs of these records are not comparable with those of `HFEngine`."""
    neutral = Sampling(temperature=sampling.temperature).filters
    on = [f"{name}={value}" for name, value in sampling.filters.items() if value != neutral[name]]
    if on and sampling.temperature > 0:
        logger.warning(
            "with %s the log-probs of these records are those of the tokens that the filter "
            "keeps; the HF engine's are taken before it.",
            ", ".join(on),
        )
