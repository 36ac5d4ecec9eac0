"""One thinking that grows token by token and can be asked for its answer at any of them.

What a view is handed, whatever model stands behind it: nothing here imports one.

Behind a server a thinking is one streamed completion. It stays open while summaries are asked for
by requests of their own, and is read on afterwards: no token of it is computed twice, and with one
seed it is the same however often it is asked. A question stands on the prefix that the server has
cached (vLLM: in whole blocks; what is left of the last one is read again). The server may think
ahead meanwhile.
"""

import hashlib
import threading
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from anytime_lab.prompts import PieceReader, ThinkingTokens, decode, prompt_ids

UNKNOWN_ROOM = 8192  # tokens of thinking asked for where a server does not tell its context

Prompt = str | Sequence[Mapping[str, Any]]


class ThinkingError(RuntimeError):
    """A thinking cannot go on now; the message says why and what to do."""


@dataclass(frozen=True)
class Answer:
    """One summary of a thinking as it stood.

    Attributes:
        forced: The text inserted before it (BRPO §5).
        text: The summary, without EOS.
        tokens: Tokens sampled for it, EOS included.
        logprob: Sum of their log-probs, in nats; None where the server does not tell.
        finished: Whether it ended by itself.
    """

    forced: str
    text: str
    tokens: int
    logprob: float | None
    finished: bool


class Thought(Protocol):
    """One thinking. All calls come from one thread, but for `close`.

    Attributes:
        text: What was thought, in complete characters.
        length: Tokens of it.
        end: How it ended: `closed` by its own marker, `eos`, `length` (the context is full), or
            `` while it goes on.
    """

    text: str
    length: int
    end: str

    def step(self) -> str:
        """Think one more token.

        Returns:
            What it adds to the text: nothing while a character is incomplete, or past the end.

        Raises:
            ThinkingError: it cannot go on now. Calling again tries again.
        """
        ...

    def answers(self, count: int) -> list[Answer]:
        """Sample `count` summaries of the thinking as it stands; it goes on as if never asked.

        What they are depends on the thought's seed and length alone, not on earlier questions. At
        temperature 0 they are all alike.

        Raises:
            ThinkingError: it cannot be asked now. Calling again tries again.
        """
        ...

    def close(self) -> None:
        """Give up what the thought holds. Any thread may call, also during a step, which then ends
        early or as the last one; calling twice does nothing more.
        """
        ...


class Thinker(Protocol):
    """A model that begins thoughts.

    Attributes:
        name: For titles.
    """

    name: str

    def think(self, prompt: Prompt, temperature: float = 1.0, seed: int = 0) -> Thought:
        """Begin a thought of a prompt.

        Args:
            prompt: A conversation, or a text that is taken as it is.
            temperature: Of thinking and summaries; 0 is greedy.
            seed: Decides everything that is drawn.

        Raises:
            ThinkingError, ValueError: the model cannot think about this; the message says why.
        """
        ...


def answer_seed(seed: int, length: int) -> int:
    """The seed of summaries at a length, in 0 … 2³¹ − 1; independent of the thinking's own."""
    digest = hashlib.sha256(f"answers {seed} {length}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def thinking_room(context: int | None, prompt, tokens, sampling: Any) -> int | None:
    """Tokens of thinking that fit beside the prompt, the forced text and a summary.

    Args:
        context: Positions of the model; None where it has no limit.
        prompt: Token ids.
        tokens: ThinkingTokens.
        sampling: For the length of a summary.

    Raises:
        ThinkingError: none fit.
    """
    if context is None:
        return None
    forced = max(len(tokens.cut_ids), len(tokens.header_ids))
    room = context - len(prompt) - forced - sampling.max_summary_tokens
    if room < 1:
        raise ThinkingError(
            f"the model's context is {context:,} tokens; prompt {len(prompt):,} + forced text "
            f"{forced:,} + summary {sampling.max_summary_tokens:,} leave none to think. Give a "
            "shorter problem, or a smaller max_summary_tokens."
        )
    return room


class _Thinker:
    """What all thinkers do with a prompt before a model sees it."""

    def __init__(
        self,
        tokens: ThinkingTokens,
        sampling: Any,
        name: str,
        context_length: int | None,
        chat_template_kwargs: Mapping[str, Any] | None,
    ):
        self.tokens, self.tokenizer, self.fmt = tokens, tokens.tokenizer, tokens.fmt
        self.sampling, self.name, self.context_length = sampling, name, context_length
        self.chat_template_kwargs = dict(chat_template_kwargs or {})

    def _begin(self, prompt: Prompt) -> tuple[list[int], int | None]:
        """Token ids of a prompt, and the tokens of thinking that fit beside it."""
        ids = prompt_ids(prompt, self.tokenizer, self.fmt, self.chat_template_kwargs)
        return ids, thinking_room(self.context_length, ids, self.tokens, self.sampling)


class _Growing:
    """A text that grows by tokens."""

    def __init__(self, thinker: Any, room: int | None, seed: int):
        self.thinker, self.room, self.seed = thinker, room, seed
        self.text, self.length, self.end = "", 0, ""
        self._reader = PieceReader(thinker.tokenizer, thinker.tokens)

    def _read(self, token: int, end: str) -> str:
        self.length += 1
        piece, self.end = self._reader.read(token), end
        return self._add(piece + (self._reader.rest() if end else ""))

    def _ended(self, end: str) -> str:
        self.end = end
        return self._add(self._reader.rest())

    def _add(self, piece: str) -> str:
        self.text += piece
        return piece

    def _text_of(self, ids: Sequence[int]) -> str:
        return decode(self.thinker.tokenizer, self.thinker.tokens, ids)


class HFThinker(_Thinker):
    """Begins thoughts of a transformers model; see `Thinker`.

    Several may think at once, from several threads: they take turns by the token.

    Args:
        engine: An `HFEngine`, which holds the model.
        sampling: How tokens are drawn, and how long a summary may be. Its temperature is not used.
        name: For titles; the model's own if empty.
        chat_template_kwargs: For the chat template.
    """

    def __init__(
        self,
        engine: Any,
        sampling: Any,
        name: str = "",
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ):
        name = name or engine.model.config.name_or_path or type(engine.model).__name__
        super().__init__(engine.tokens, sampling, name, engine.context_length, chat_template_kwargs)
        self.engine = engine
        self.lock = threading.Lock()  # one step at a time: the model's mode is switched around it

    def think(self, prompt: Prompt, temperature: float = 1.0, seed: int = 0) -> "HFThought":
        """See `Thinker.think`."""
        ids, room = self._begin(prompt)
        with self.lock:
            trunks = self.engine.think(ids, replace(self.sampling, temperature=temperature), seed)
        return HFThought(self, trunks, room, seed)


class HFThought(_Growing):
    """A thinking on its cache; see `Thought`."""

    def __init__(self, thinker: HFThinker, trunks: Any, room: int | None, seed: int):
        super().__init__(thinker, room, seed)
        self.trunks = trunks

    def step(self) -> str:
        """See `Thought.step`."""
        trunks = self._open()
        if self.end:
            return ""
        if self.room is not None and self.length >= self.room:
            return self._ended("length")
        with self.thinker.lock:
            token = self.thinker.engine.step(trunks)
        return self._read(token, trunks.ends[0])

    def answers(self, count: int) -> list[Answer]:
        """See `Thought.answers`."""
        trunks, engine = self._open(), self.thinker.engine
        with self.thinker.lock:
            leaves = engine.answers(trunks, count, answer_seed(self.seed, self.length))
        return [
            Answer(
                forced=self._text_of(leaf.forced),
                text=self._text_of(leaf.summary),
                tokens=len(leaf.summary),
                logprob=sum(leaf.logprobs),
                finished=leaf.finished,
            )
            for leaf in leaves
        ]

    def close(self) -> None:
        """See `Thought.close`; frees the cache."""
        self.trunks = None

    def _open(self) -> Any:
        trunks = self.trunks
        if trunks is None:
            raise ThinkingError("this thought was closed; begin another.")
        return trunks


class ServerThinker(_Thinker):
    """Begins thoughts of a model behind a server; see `Thinker`.

    Args:
        client: A `CompletionsClient`.
        tokens: The thinking format in the ids of the tokenizer of the model that it serves.
        sampling: How tokens are drawn, and how long a summary may be. Its temperature is not used.
        model: Its name there; the first that the server lists if None.
        max_thinking_tokens: Most tokens of a thinking; all that fit into the context that the
            server tells (vLLM does), or `UNKNOWN_ROOM`, if None.
        chat_template_kwargs: For the chat template.

    Raises:
        ThinkingError: the server cannot be reached, or serves no such model.
    """

    def __init__(
        self,
        client: Any,
        tokens: ThinkingTokens,
        sampling: Any,
        model: str | None = None,
        max_thinking_tokens: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ):
        served = {card["id"]: card for card in client.models()}
        if not served or model not in (None, *served):
            raise ThinkingError(
                f"the server at {client.url} serves {', '.join(served) or 'no model'}"
                + (f", not {model}." if model else ".")
            )
        name = model or next(iter(served))
        context = served[name].get("max_model_len")
        super().__init__(tokens, sampling, name, context, chat_template_kwargs)
        self.client, self.max_thinking_tokens = client, max_thinking_tokens

    def think(self, prompt: Prompt, temperature: float = 1.0, seed: int = 0) -> "ServerThought":
        """See `Thinker.think`. Nothing is sent before the first step."""
        ids, room = self._begin(prompt)
        limits = [n for n in (room, self.max_thinking_tokens) if n is not None]
        sampling = replace(self.sampling, temperature=temperature)
        return ServerThought(self, ids, min(limits, default=UNKNOWN_ROOM), sampling, seed)


class ServerThought(_Growing):
    """A thinking on an open stream; see `Thought`.

    Where the server tells token ids (vLLM), tokens are exact. Elsewhere a token is what one event
    adds, and the text is tokenised again to be asked.
    """

    def __init__(
        self, thinker: ServerThinker, prompt: list[int], room: int, sampling: Any, seed: int
    ):
        super().__init__(thinker, room, seed)
        self.prompt, self.sampling = prompt, sampling
        self.ids: list[int] | None = None  # of the thinking, where the server tells them
        self._waiting: deque[int | str] = deque()  # tokens that came, but were not stepped over
        self._finish = ""
        self._call: Any = None
        self._events: Generator[dict[str, Any], None, None] | None = None
        self._asked: Any = None
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
            self._hang_up()
            ended = "eos" if self.thinker.fmt.think_close else "closed"
            return self._ended("length" if self._finish == "length" else ended)
        token = self._waiting.popleft()
        if isinstance(token, int):
            self.ids.append(token)
            piece = self._read(token, self.thinker.tokens.end(self.ids))
        else:
            piece = self._read_text(token)
        if self.end:  # by a token; what a server sends past it is not part of the thinking
            self._hang_up()
        return piece

    def answers(self, count: int) -> list[Answer]:
        """See `Thought.answers`. Their log-probs are as the server counts them."""
        with self._in_use:
            return self._answers(count)

    def _answers(self, count: int) -> list[Answer]:
        self._check_open()
        tokens = self.thinker.tokens
        thought = self._thought_ids()
        thought = thought[: tokens.kept(thought)]
        forced = tokens.forced(self.end or "length", len(thought), len(thought))
        greedy = self.sampling.temperature == 0  # servers refuse more than one of those
        body = self._body([*self.prompt, *thought, *forced]) | {
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
        made = [self._answer(choice, self._text_of(forced)) for choice in choices]
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
                    "stop_token_ids": sorted(self.thinker.tokens.stop_ids),
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

    def _read_text(self, token: str) -> str:
        """Add a piece of text; a marker may come in parts, or with what follows it."""
        self.length += 1
        close = self.thinker.fmt.think_close
        at = (self.text + token).find(close, max(0, len(self.text) - len(close))) if close else -1
        if at < 0:
            return self._add(token)
        self.end = "closed"
        return self._add(token[: at + len(close) - len(self.text)])

    def _thought_ids(self) -> list[int]:
        if self.ids is not None:
            return self.ids
        return list(self.thinker.tokenizer(self.text, add_special_tokens=False)["input_ids"])

    def _answer(self, choice: dict[str, Any], forced: str) -> Answer:
        tokenizer, logprobs = self.thinker.tokenizer, choice.get("logprobs") or {}
        values = logprobs.get("token_logprobs")
        text, ids = choice.get("text") or "", choice.get("token_ids")
        if ids:
            text = self._text_of(ids)
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
