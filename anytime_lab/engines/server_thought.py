"""Thoughts of a model behind an OpenAI-compatible completions server, streamed.

A thinking is one streamed completion. It stays open while summaries are asked for by requests of
their own, and is read on afterwards: no token of it is computed twice, and with one seed it is the
same however often it is asked. A question stands on the prefix that the server has cached (vLLM: in
whole blocks; what is left of the last one is read again). The server may think ahead meanwhile.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from anytime_lab.engines.base import Sampling
from anytime_lab.engines.completions import Call, CompletionsClient
from anytime_lab.engines.hf_thought import thinking_room
from anytime_lab.engines.thoughts import Answer, Prompt, ThinkingError, answer_seed
from anytime_lab.prompts import (
    PieceReader,
    ThinkingFormat,
    decode,
    detect_format,
    prompt_ids,
    resolve_tokens,
)

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
