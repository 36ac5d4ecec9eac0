"""Thoughts of a model behind an OpenAI-compatible completions server, streamed.

A thinking is one streamed completion. It stays open while summaries are asked for by requests of
their own, and is read on afterwards: no token of it is computed twice, and with one seed it is the
same however often it is asked. A question stands on the prefix that the server has cached (vLLM: in
whole blocks; what is left of the last one is read again). The server may think ahead meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
from transformers import PreTrainedTokenizerBase

from anytime_lab.engines.base import Continuation, Prefix, Sampling, sample_trees_in_two_phases
from anytime_lab.engines.hf import thinking_room
from anytime_lab.engines.thoughts import Answer, Prompt, ThinkingError, answer_seed
from anytime_lab.engines.vllm import warn_of_filters
from anytime_lab.prompts import (
    PieceReader,
    ThinkingFormat,
    ThinkingTokens,
    decode,
    detect_format,
    prompt_ids,
    resolve_tokens,
)
from anytime_lab.tree import Tree

logger = logging.getLogger(__name__)

PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that may be better the next time


class PassingError(ThinkingError):
    """What may pass: no connection, silence, an overload. The same request may succeed later."""


class CompletionsClient:
    """One server.

    Args:
        url: Such as `http://localhost:8000`; `/v1` is added where it lacks.
        api_key: Sent as a bearer token where there is one.
        timeout: Seconds without a byte after which the server counts as gone.
    """

    def __init__(self, url: str, api_key: str | None = None, timeout: float = 60.0):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url is {url!r}; expected http://… or https://…")
        url = url.rstrip("/")
        self.url = url if url.endswith("/v1") else f"{url}/v1"
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Timeout(timeout, connect=min(timeout, 5.0))
        # A connection for each request, so that one can be cut off (`Call.close`).
        once = httpx.Limits(max_keepalive_connections=0)
        self.http = httpx.Client(headers=headers, timeout=limits, limits=once)
        self.timeout = timeout

    def models(self) -> list[dict[str, Any]]:
        """What the server serves, as it says."""
        with Call(self, "GET", "/models") as call:
            found = call.json().get("data")
        if not isinstance(found, list) or not all(isinstance(m, dict) and "id" in m for m in found):
            raise ThinkingError(f"{self.url}/models does not list models; is this the right URL?")
        return found

    def complete(self, body: dict[str, Any]) -> Call:
        """A completion, sent when it is opened."""
        return Call(self, "POST", "/completions", body)


class Call:
    """One request and its answer, which another thread may cut off by `hang_up`.

    Use as a context, or `open` it and `close` it.
    """

    def __init__(self, client: CompletionsClient, method: str, path: str, body: Any = None):
        self.client, self.where = client, f"the server at {client.url}"
        self.request = client.http.build_request(method, client.url + path, json=body)
        self.request.extensions["trace"] = self._trace
        self.cut_off = False
        self._link: socket.socket | None = None
        self._response: httpx.Response | None = None

    def open(self) -> Call:
        """Send the request and wait for the head of the answer.

        Raises:
            ThinkingError: it does not come, or it is a refusal.
        """
        with self._told():
            self._response = self.client.http.send(self.request, stream=True)
            if self._response.is_error:
                self._response.read()
                told = f"{self.where} refused: {_complaint(self._response)}"
                passing = self._response.status_code in PASSING
                raise (PassingError if passing else ThinkingError)(told)
        return self

    def close(self) -> None:
        """Give the connection back, read to its end or not."""
        if self._response is not None:
            self._response.close()

    __enter__ = open

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def hang_up(self) -> None:
        """Cut the connection, from any thread: what waits for it fails at once."""
        self.cut_off = True
        if self._link is not None:
            with contextlib.suppress(OSError):  # it has ended already
                self._link.shutdown(socket.SHUT_RDWR)

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            self._link = info["return_value"].get_extra_info("socket")
            if self.cut_off:  # while it connected
                self.hang_up()

    def json(self) -> dict[str, Any]:
        """The whole answer."""
        with self._told():
            self._response.read()
            found = self._response.json()
        if not isinstance(found, dict):
            raise ThinkingError(f"{self.where} answered with no JSON object.")
        return found

    def events(self) -> Generator[dict[str, Any], None, None]:
        """The data of server-sent events as they come, until the server says that it is done.

        Raises:
            ThinkingError: the stream broke off, or holds an error.
        """
        with self._told():
            for line in self._response.iter_lines():
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                event = json.loads(data)
                if "error" in event or event.get("object") == "error":
                    raise ThinkingError(f"{self.where} failed: {_error_text(event)}")
                yield event
        raise ThinkingError(f"{self.where} broke the stream off.")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what httpx throws into sentences."""
        try:
            yield
        except httpx.ConnectError as error:
            raise PassingError(
                f"no server answers at {self.client.url} ({error}). Start one, such as "
                "`vllm serve MODEL`, or give the address of one."
            ) from error
        except httpx.TimeoutException as error:
            raise PassingError(
                f"{self.where} said nothing for {self.client.timeout:g} seconds."
            ) from error
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise PassingError(f"{self.where} broke off ({error}).") from error
        except ValueError as error:
            raise ThinkingError(f"{self.where} answered with broken JSON ({error}).") from error


def _complaint(response: httpx.Response) -> str:
    try:
        told = _error_text(response.json())
    except ValueError:
        told = response.text[:300]
    return f"{response.status_code} {told or response.reason_phrase}"


def _error_text(event: Any) -> str:
    error = event.get("error", event) if isinstance(event, dict) else event
    if isinstance(error, dict):
        error = error.get("message", error)
    return str(error)[:500]


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


DEFAULT_SAMPLING = Sampling()
UNKNOWN_ROOM = 8192  # tokens of thinking asked for where a server does not tell its context


class ServerThinker:
    """Begins thoughts of a model behind a server; see `thoughts.Thinker`.

    Args:
        client: The server.
        tokenizer: Of the model that it serves.
        model: Its name there; the first that the server lists if None.
        fmt: The model's format; by what the tokenizer supports if None.
        sampling: How tokens are drawn, and how long a summary may be. Its temperature is not used.
        max_thinking_tokens: Most tokens of a thinking; all that fit into the context that the
            server tells (vLLM does), or `UNKNOWN_ROOM`, if None.
        chat_template_kwargs: For the chat template.

    Raises:
        ThinkingError: the server cannot be reached, or serves no such model.
        ValueError: the tokenizer lacks the think-end marker.
    """

    def __init__(
        self,
        client: CompletionsClient,
        tokenizer: PreTrainedTokenizerBase,
        model: str | None = None,
        fmt: ThinkingFormat | None = None,
        sampling: Sampling = DEFAULT_SAMPLING,
        max_thinking_tokens: int | None = None,
        chat_template_kwargs: dict | None = None,
    ):
        self.client, self.tokenizer, self.sampling = client, tokenizer, sampling
        self.fmt = fmt or detect_format(tokenizer)
        self.tokens = resolve_tokens(tokenizer, self.fmt)
        self.max_thinking_tokens = max_thinking_tokens
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        served = {card["id"]: card for card in client.models()}
        if model is not None and model not in served:
            raise ThinkingError(
                f"the server at {client.url} serves {', '.join(served) or 'nothing'}, not {model}."
            )
        self.name = model or next(iter(served), None)
        if self.name is None:
            raise ThinkingError(f"the server at {client.url} serves no model.")
        self.context_length: int | None = served[self.name].get("max_model_len")

    def think(self, prompt: Prompt, temperature: float = 1.0, seed: int = 0) -> ServerThought:
        """See `Thinker.think`. Nothing is sent before the first step."""
        ids = prompt_ids(prompt, self.tokenizer, self.fmt, self.chat_template_kwargs)
        room = thinking_room(self.context_length, ids, self.tokens, self.sampling)
        limits = [n for n in (room, self.max_thinking_tokens) if n is not None]
        sampling = replace(self.sampling, temperature=temperature)
        return ServerThought(self, ids, min(limits, default=UNKNOWN_ROOM), sampling, seed)


class ServerThought:
    """A thinking on an open stream; see `thoughts.Thought`.

    Where the server tells token ids (vLLM), tokens are exact. Elsewhere a token is what one event
    adds, and the text is tokenised again to be asked.
    """

    def __init__(
        self, thinker: ServerThinker, prompt: list[int], room: int, sampling: Sampling, seed: int
    ):
        self.thinker, self.prompt, self.room = thinker, prompt, room
        self.sampling, self.seed = sampling, seed
        self.text, self.length, self.end = "", 0, ""
        self.ids: list[int] | None = None  # of the thinking, where the server tells them
        self._reader = PieceReader(thinker.tokenizer, thinker.tokens)
        self._waiting: deque[int | str] = deque()  # tokens that came, but were not stepped over
        self._finish = ""
        self._call: Call | None = None
        self._events: Generator[dict[str, Any], None, None] | None = None
        self._asked: Call | None = None
        self._opened = 0
        self._closed = False
        self._in_use = threading.Lock()

    def step(self) -> str:
        """See `Thought.step`. A stream that broke off is opened again where it was."""
        with self._in_use:
            return self._step()

    def _step(self) -> str:
        self._check_open()
        if self.end:
            return ""
        while not self._waiting and not self._finish:
            self._receive()
        if not self._waiting:
            self.end = "length" if self._finish == "length" else "eos"
            self._hang_up()
            return self._add(self._reader.rest())
        piece = self._take(self._waiting.popleft())
        self.length += 1
        if self.end:  # by a token; what a server sends past it is not part of the thinking
            self._hang_up()
            piece += self._reader.rest()
        return self._add(piece)

    def answers(self, count: int) -> list[Answer]:
        """See `Thought.answers`. Their log-probs are as the server counts them."""
        with self._in_use:
            return self._answers(count)

    def _answers(self, count: int) -> list[Answer]:
        self._check_open()
        tokens = self.thinker.tokens
        forced = tokens.forced(self.end or "length", self.length, self.length)
        greedy = self.sampling.temperature == 0  # servers refuse more than one of those
        body = self._body([*self.prompt, *self._thought_ids(), *forced]) | {
            "max_tokens": self.sampling.max_summary_tokens,
            "n": 1 if greedy else count,
            "seed": answer_seed(self.seed, self.length),
            "logprobs": 1,
        }
        self._asked = self.thinker.client.complete(body)
        self._check_open()  # once more: `close` may have come before there was a call to cut off
        with self._asked:
            choices = self._asked.json().get("choices") or []
        if len(choices) != body["n"]:
            raise ThinkingError(
                f"the server at {self.thinker.client.url} returned {len(choices)} summaries; "
                f"{body['n']} were asked for."
            )
        told = decode(self.thinker.tokenizer, tokens, forced)
        made = [self._answer(choice, told) for choice in choices]
        return made * count if greedy else made

    def close(self) -> None:
        """See `Thought.close`; the server stops thinking when the stream is cut off."""
        self._closed = True
        for call in (self._call, self._asked):
            if call is not None:
                call.hang_up()
        if self._in_use.acquire(blocking=False):  # else the call that was cut off clears up
            try:
                self._hang_up()
            finally:
                self._in_use.release()

    # --- the stream ------------------------------------------------------------------------------

    def _body(self, ids: list[int]) -> dict[str, Any]:
        sampling = self.sampling
        return {
            "model": self.thinker.name,
            "prompt": ids,
            "skip_special_tokens": False,  # the think-end marker is special in some vocabularies
            "return_token_ids": True,
            # Told even where neutral: a server may have defaults from the checkpoint.
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": 1.0,
        }

    def _receive(self) -> None:
        """Read one event of the stream, opened where the thinking stands if it is not open."""
        try:
            if self._events is None:
                if self.length >= self.room:
                    self._finish = "length"
                    return
                body = self._body([*self.prompt, *self._thought_ids()]) | {
                    "max_tokens": self.room - self.length,
                    "seed": (self.seed + self._opened) % 2**31,
                    "stop_token_ids": [self.thinker.tokens.close_id],
                    "stream": True,
                }
                self._call = self.thinker.client.complete(body)
                self._check_open()  # as in `answers`
                self._opened += 1
                self._events = self._call.open().events()
            event = next(self._events, None)
            if event is None:
                self._finish = self._finish or "stop"
                return
            for choice in event.get("choices") or []:
                self._read_choice(choice)
        except ThinkingError as error:
            self._hang_up()
            self._check_open()
            raise ThinkingError(
                f"{error} {self.length:,} tokens were thought; thinking on begins there."
            ) from error

    def _read_choice(self, choice: dict[str, Any]) -> None:
        ids, text = choice.get("token_ids"), choice.get("text")
        if ids and self.ids is None and not self.length:
            self.ids = []
        if self.ids is not None:
            self._waiting += ids or []
        elif text:
            self._waiting.append(text)
        if choice.get("finish_reason"):
            self._finish = str(choice["finish_reason"])

    def _take(self, token: int | str) -> str:
        """A token's text; sets `end` where the token ends the thinking."""
        tokens, close = self.thinker.tokens, self.thinker.fmt.think_close
        if isinstance(token, int):
            self.ids.append(token)
            if token == tokens.close_id:
                self.end = "closed"
            elif token in tokens.eos_ids:
                self.end = "eos"
            return self._reader.read(token)
        # a marker may come in parts, or with what follows it
        at = (self.text + token).find(close, max(0, len(self.text) - len(close)))
        if at < 0:
            return token
        self.end = "closed"
        return token[: at + len(close) - len(self.text)]

    def _thought_ids(self) -> list[int]:
        if self.ids is not None:
            return self.ids
        return list(self.thinker.tokenizer(self.text, add_special_tokens=False)["input_ids"])

    def _answer(self, choice: dict[str, Any], forced: str) -> Answer:
        tokenizer, logprobs = self.thinker.tokenizer, choice.get("logprobs") or {}
        values = logprobs.get("token_logprobs")
        text, ids = choice.get("text") or "", choice.get("token_ids")
        if ids:
            text = decode(tokenizer, self.thinker.tokens, ids)
        told = values is not None and all(value is not None for value in values)
        size = len(ids or values or tokenizer(text, add_special_tokens=False)["input_ids"])
        return Answer(
            forced=forced,
            text=text,
            tokens=size,
            logprob=float(sum(values)) if told and values else None,
            finished=choice.get("finish_reason") != "length",
        )

    # --- ends ------------------------------------------------------------------------------------

    def _add(self, piece: str) -> str:
        self.text += piece
        return piece

    def _hang_up(self) -> None:
        call, events = self._call, self._events
        self._call = self._events = None
        self._waiting.clear()
        if events is not None:
            events.close()
        if call is not None:
            call.close()

    def _check_open(self) -> None:
        if self._closed:
            self._hang_up()
            raise ThinkingError("this thought was closed; begin another.")
