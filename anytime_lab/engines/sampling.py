"""One step of sampling: logits to tokens and their log-probs."""

import torch
from torch import Tensor

from anytime_lab.engines.base import Sampling


def sample_tokens(
    logits: Tensor, sampling: Sampling, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Draw a token from each row of logits.

    Args:
        logits: (..., V).
        sampling: Temperature and filters.
        generator: Source of randomness on the logits' device; None is the global one.

    Returns:
        Tokens (...) and their log-probs (...), in nats, at the sampling temperature (at 1 where
        that is 0) and before any filter: what a trainer that scores all tokens computes.
    """
    logits = logits.float()
    if sampling.temperature > 0:
        logits = logits / sampling.temperature
    logprobs = logits.log_softmax(-1)
    if sampling.temperature == 0:
        tokens = logprobs.argmax(-1)
    else:
        # argmax p / Exp(1) is a draw from p, without the host round trips of multinomial.
        noise = torch.empty_like(logprobs).exponential_(generator=generator)
        tokens = (_kept(logprobs, sampling) - noise.log()).argmax(-1)
    return tokens, logprobs.gather(-1, tokens[..., None])[..., 0]


def _kept(logprobs: Tensor, sampling: Sampling) -> Tensor:
    """Log-probs with -inf on the tokens that the filters leave out (top-k, min-p, then top-p)."""
    if sampling.top_k and sampling.top_k < logprobs.shape[-1]:
        smallest = logprobs.topk(sampling.top_k, dim=-1).values[..., -1:]
        logprobs = logprobs.masked_fill(logprobs < smallest, -torch.inf)
    if sampling.min_p > 0:
        smallest = logprobs.max(-1, keepdim=True).values + torch.tensor(sampling.min_p).log()
        logprobs = logprobs.masked_fill(logprobs < smallest, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logprobs.softmax(-1).sort(dim=-1, descending=True)
        above = ordered.cumsum(-1) - ordered  # probability of the likelier ones
        out = torch.zeros_like(above, dtype=torch.bool).scatter(-1, order, above >= sampling.top_p)
        logprobs = logprobs.masked_fill(out, -torch.inf)
    return logprobs
