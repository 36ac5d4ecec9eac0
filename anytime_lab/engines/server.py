"""Trees from a model behind an OpenAI-compatible server, through its completions API.

Token ids go out and come back, so that a cut stands where the budget says. `vllm serve` does this;
servers that tell no token ids are refused, since their text cannot be cut at a token.
"""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from anytime_lab.engines.base import Sampling
from anytime_lab.engines.completions import CompletionsClient, PassingError
from anytime_lab.engines.thoughts import ThinkingError
from anytime_lab.engines.two_phase import Continuation, Prefix, sample_trees_in_two_phases
from anytime_lab.engines.vllm import warn_of_filters
from anytime_lab.prompts import ThinkingTokens
from anytime_lab.tree import Tree

logger = logging.getLogger(__name__)

TOKEN_ID = "token_id:"  # how vLLM writes a token of the log-probs as an id
LONGER = "Lower the budgets, or start the server with a longer context (vLLM: --max-model-len)."
COLD = 0.01  # a temperature at which log-probs tell whether they are taken at it


class ServerEngine:
    """Samples trees through a server such as `vllm serve MODEL`, over its completions API.

    The server decides at which temperature log-probs are taken: vLLM at the sampling temperature
    if started with `--logprobs-mode processed_logprobs`, else at 1. A warning says so where the
    records would not hold what `HFEngine`'s do.

    Args:
        url: Such as `http://localhost:8000`; `/v1` is added where it lacks.
        tokens: The thinking format in the ids of the model's tokenizer.
        model: Names that the model may have there; the first that is served is taken. None takes
            the only one that is served.
        api_key: Sent as a bearer token.
        concurrency: Requests at a time.
        timeout: Seconds that a request may take.
        retries: Times that a request is sent again after a lost connection or an overload.

    Raises:
        ThinkingError: the server cannot be reached, or serves no such model.
    """

    def __init__(
        self,
        url: str,
        tokens: ThinkingTokens,
        model: str | Sequence[str] | None = None,
        api_key: str | None = None,
        concurrency: int = 64,
        timeout: float = 3600.0,
        retries: int = 4,
    ):
        if concurrency < 1:
            raise ValueError(
                f"concurrency is {concurrency}; expected at least 1 request at a time."
            )
        self.client = CompletionsClient(url, api_key, timeout)
        self.url = self.client.url
        self.tokens, self.concurrency, self.retries = tokens, concurrency, retries
        served = {card["id"]: card for card in self._patiently(self.client.models)}
        names = [model] if isinstance(model, str) else list(model or served)
        found = [name for name in names if name in served]
        if not found or (model is None and len(found) > 1):
            raise ThinkingError(
                f"the server at {self.url} serves {', '.join(map(repr, served)) or 'no model'}; "
                f"asked for {' or '.join(map(repr, names)) if model else 'its only one'}. Give the "
                'name that it lists (in notebook 03: engine_options = {"served_name": …}).'
            )
        self.served_name = found[0]
        self.context_length: int | None = served[self.served_name].get("max_model_len")
        self._warned = False

    def sample_trees(
        self,
        prompts: Sequence[Sequence[int]],
        budgets: Sequence[int],
        num_summaries: int,
        sampling: Sampling,
        seed: int | None = None,
        share_cuts: bool = False,
    ) -> list[Tree]:
        """See `Engine.sample_trees`.

        Raises:
            ThinkingError: a request failed for good, or the answer lacks token ids or log-probs.
        """
        warn_of_filters(sampling)
        if prompts and sampling.temperature not in (0, 1):
            self._warn_of_temperature(prompts[0], sampling.temperature)
        with ThreadPoolExecutor(self.concurrency) as pool:

            def complete(prefixes, limit, stops):
                def one(prefix):
                    return self._complete(prefix, limit, stops, sampling)

                return list(pool.map(one, prefixes))

            try:
                return sample_trees_in_two_phases(
                    complete, self.tokens, prompts, budgets, num_summaries, sampling, seed,
                    share_cuts,
                )  # fmt: skip
            finally:
                pool.shutdown(cancel_futures=True)  # after a failure the rest is not wanted

    def _complete(
        self, prefix: Prefix, limit: int, stops: frozenset[int], sampling: Sampling
    ) -> list[Continuation]:
        body = {
            "model": self.served_name,
            "prompt": list(prefix.ids),
            "n": prefix.count,
            "max_tokens": limit,
            "logprobs": 1,
            "stop_token_ids": sorted(stops),
            "ignore_eos": True,  # it is among the stops where it should be
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            # Told even where neutral: a server may have defaults from the checkpoint.
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": 1.0,
        }
        if prefix.seed is not None:
            body["seed"] = prefix.seed
        try:
            choices = self._patiently(lambda: self._post(body)).get("choices", [])
        except ThinkingError as error:
            if "context length" in str(error) or "max_model_len" in str(error):  # vLLM says either
                raise ThinkingError(f"{error} {LONGER}") from error
            raise
        if len(choices) != prefix.count:
            raise ThinkingError(
                f"the server at {self.url} gave {len(choices)} completions; {prefix.count} were "
                "asked for (n). It has to support `n`."
            )
        return [self._read(one) for one in sorted(choices, key=lambda one: one.get("index", 0))]

    def _read(self, choice: dict[str, Any]) -> Continuation:
        told = choice.get("logprobs") or {}
        names, values = told.get("tokens") or [], told.get("token_logprobs") or []
        ids = choice.get("token_ids")
        if ids is None and names and all(str(name).startswith(TOKEN_ID) for name in names):
            ids = [int(name.removeprefix(TOKEN_ID)) for name in names]
        if not ids:
            raise ThinkingError(
                f"the server at {self.url} tells no token ids, so a thinking cannot be cut at a "
                "budget. Use one that knows `return_token_ids` (vLLM 0.10.2 and later), or "
                'engine="vllm" or "hf".'
            )
        if len(values) != len(ids):
            raise ThinkingError(
                f"the server at {self.url} gave {len(values)} log-probs for {len(ids)} tokens. "
                "Start it with log-probs allowed (vLLM: --max-logprobs 1 or more)."
            )
        return Continuation(tuple(ids), tuple(values))

    def _warn_of_temperature(self, prompt: Sequence[int], temperature: float) -> None:
        """Look once at which temperature the server takes log-probs, by one token of the prompt."""
        if self._warned:
            return
        self._warned = True
        prefix, ends = Prefix(tuple(prompt), 1, 0), self.tokens.eos_ids
        (plain,) = self._complete(prefix, 1, ends, Sampling(temperature=0))
        (cold,) = self._complete(prefix, 1, ends, Sampling(temperature=COLD))
        # At 1 the likeliest token has the same log-prob in both; at COLD it is nearly certain.
        if plain.tokens == cold.tokens and abs(plain.logprobs[0] - cold.logprobs[0]) < 1e-3:
            logger.warning(
                "the server at %s takes log-probs at temperature 1, not at %g: the records' "
                "log-probs are not those of the HF engine. Start vLLM with "
                "--logprobs-mode processed_logprobs.",
                self.url,
                temperature,
            )

    def _patiently(self, send: Callable[[], Any]) -> Any:
        """What `send` returns; called again after what may pass."""
        for attempt in range(self.retries):
            try:
                return send()
            except PassingError:
                time.sleep(min(0.25 * 2**attempt, 8.0))
        return send()

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        with self.client.complete(body) as call:
            return call.json()
