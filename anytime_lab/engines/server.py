"""Trees sampled through an OpenAI-compatible completions server."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import httpx

from anytime_lab.engines.base import Continuation, Engine, Prefix, Sampling
from anytime_lab.engines.thoughts import ThinkingError
from anytime_lab.engines.vllm import warn_of_filters
from anytime_lab.prompts import ThinkingTokens, encode

logger = logging.getLogger(__name__)

PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that may be better the next time
LONGER = " Lower the budgets, or start the server with a longer context (vLLM: --max-model-len)."
SCHEMES = ("http://", "https://")  # how a server's address begins
COLD = 0.01  # a temperature at which log-probs tell whether they are taken at it


class ServerEngine(Engine):
    """Samples trees through a server such as `vllm serve MODEL`, over its completions API.

    The server decides at which temperature log-probs are taken: vLLM at the sampling temperature
    if started with `--logprobs-mode processed_logprobs`, else at 1. A warning says so where the
    records would not hold what `HFEngine`'s do.

    Args:
        url: Such as `http://localhost:8000`; `/v1` is added where it lacks. A user and password
            in it are sent to the server and told nowhere.
        tokens: The thinking format in the ids of the model's tokenizer.
        model: Names that the model may have there; the first that is served is taken. None takes
            the only one that is served.
        api_key: Sent as a bearer token where there is one.
        concurrency: Requests at a time.
        timeout: Seconds without a byte after which the server counts as gone.
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
        if not url.startswith(SCHEMES):
            raise ValueError(f"url is {url!r}; expected http://… or https://…")
        address = httpx.URL(url)
        user = (address.username, address.password) if address.userinfo else None
        url = str(address.copy_with(userinfo=b"")).rstrip("/")
        self.url = url if url.endswith("/v1") else f"{url}/v1"
        self.http = httpx.Client(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            auth=user,
            timeout=httpx.Timeout(timeout, connect=min(timeout, 5.0), pool=None),
            limits=httpx.Limits(max_connections=None),
        )
        self.tokens, self.concurrency, self.retries = tokens, concurrency, retries
        cards = self._patiently("GET", "/models").get("data")
        if not isinstance(cards, list) or not all(isinstance(m, dict) and "id" in m for m in cards):
            raise ThinkingError(f"{self.url}/models does not list models; is this the right URL?")
        served = {card["id"]: card for card in cards}
        names = [model] if isinstance(model, str) else list(model or served)
        found = [name for name in names if name in served]
        if not found or (model is None and len(found) > 1):
            raise ThinkingError(
                f"the server at {self.url} serves {', '.join(map(repr, served)) or 'no model'}; "
                f"asked for {' or '.join(map(repr, names)) if model else 'its only one'}. Give the "
                'name that it lists (in notebook 03: engine_options = {"served_name": …}).'
            )
        self.served_name = found[0]
        self.context_length = served[self.served_name].get("max_model_len")
        self._warned = False

    def complete(
        self, prefixes: list[Prefix], limit: int, thinks: bool, sampling: Sampling
    ) -> list[Continuation]:
        """See `Engine.complete`.

        Raises:
            ThinkingError: a request failed for good, or the answer lacks token ids or log-probs.
        """
        if thinks:
            warn_of_filters(sampling)
        if sampling.temperature not in (0, 1) and not self._warned:
            self._warned = True
            self._warn_of_temperature(prefixes[0], sampling.temperature)

        def complete(prefix: Prefix) -> list[Continuation]:
            made = self.ask(prefix, limit, thinks, sampling)
            if all(one.exact for one in made):
                return made
            raise ThinkingError(
                f"the server at {self.url} tells no token ids, or no log-prob of each, so a "
                "thinking cannot be cut at a budget. Use one that knows `return_token_ids` (vLLM "
                "0.10.2 and later), started with log-probs allowed (--max-logprobs 1 or more), or "
                'engine="vllm" or "hf".'
            )

        with ThreadPoolExecutor(self.concurrency) as pool:
            try:
                return list(chain(*pool.map(complete, prefixes)))
            finally:
                pool.shutdown(cancel_futures=True)  # after a failure the rest is not wanted

    def ask(
        self, prefix: Prefix, limit: int, thinks: bool, sampling: Sampling
    ) -> list[Continuation]:
        """See `Engine.ask`: where the server tells text alone, that is tokenised again."""
        body = {
            "model": self.served_name,
            "prompt": list(prefix.ids),
            "n": prefix.count,
            "max_tokens": limit,
            "logprobs": 1,
            "return_token_ids": True,
            "repetition_penalty": 1.0,  # told though neutral: a server may have a default
            **sampling.filters,
            **self.tokens.stops(thinks),
        }
        if prefix.seed is not None:
            body["seed"] = prefix.seed
        choices = self._patiently("POST", "/completions", body).get("choices", [])
        if len(choices) != prefix.count:
            raise ThinkingError(
                f"the server at {self.url} gave {len(choices)} completions; {prefix.count} were "
                "asked for (n). It has to support `n`."
            )
        made, tokenizer = [], self.tokens.tokenizer
        for choice in sorted(choices, key=lambda one: one.get("index", 0)):
            ids, told = choice.get("token_ids"), choice.get("logprobs") or {}
            values = told.get("token_logprobs") or ()
            values = () if None in values else tuple(values)
            exact = bool(ids) and len(values) == len(ids)
            if ids is None:
                ids = encode(tokenizer, choice.get("text") or "")
                ended = choice.get("finish_reason") != "length"
                if ended and not self.tokens.stop_ids & set(ids[-1:]):  # such servers leave it out
                    ids = [*ids, tokenizer.eos_token_id]
            made.append(Continuation(tuple(ids), values, exact))
        return made

    def _warn_of_temperature(self, prefix: Prefix, temperature: float) -> None:
        """Look at which temperature the server takes log-probs, by one token of the prompt."""
        prefix = Prefix(prefix.ids, 1, 0)
        (plain,) = self.ask(prefix, 1, False, Sampling(temperature=0))
        (cold,) = self.ask(prefix, 1, False, Sampling(temperature=COLD))
        if not (plain.exact and cold.exact):
            return  # which is told in a moment
        # At 1 the likeliest token has the same log-prob in both; at COLD it is nearly certain.
        if plain.tokens == cold.tokens and abs(plain.logprobs[0] - cold.logprobs[0]) < 1e-3:
            logger.warning(
                "the server at %s takes log-probs at temperature 1, not at %g: the records' "
                "log-probs are not those of the HF engine. Start vLLM with "
                "--logprobs-mode processed_logprobs.",
                self.url,
                temperature,
            )

    def _patiently(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """What the server answers; asked again after what may pass."""
        where = f"the server at {self.url}"
        for attempt in range(self.retries + 1):
            time.sleep(min(0.25 * 2 ** (attempt - 1), 8.0) if attempt else 0)
            try:
                response, lost = self.http.request(method, self.url + path, json=body), None
                if response.status_code not in PASSING:
                    break
            except httpx.HTTPError as error:
                lost = error
        if lost:
            told = f"{where} broke off ({lost})."
            if isinstance(lost, httpx.ConnectError):
                told = f"no server answers at {self.url} ({lost}). Start one, such as "
                told += "`vllm serve MODEL`, or give the address of one."
            if isinstance(lost, httpx.TimeoutException):
                told = f"{where} said nothing for {self.http.timeout.read:g} seconds."
            raise ThinkingError(told) from lost
        try:
            found = response.json()
        except ValueError as error:
            found = response.text if response.is_error else f"broken JSON ({error})"
        if response.is_error:
            for key in ("error", "message"):
                found = found.get(key, found) if isinstance(found, dict) else found
            told = str(found or response.reason_phrase)[:500]
            too_long = "context length" in told or "max_model_len" in told  # vLLM says either
            told += LONGER if too_long else ""
            raise ThinkingError(f"{where} refused: {response.status_code} {told}")
        if not isinstance(found, dict):
            raise ThinkingError(f"{where} answered with {found!r:.100}; expected a JSON object.")
        return found
