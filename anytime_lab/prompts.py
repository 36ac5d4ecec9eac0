"""Thinking formats: tags, the forced text after a thinking, prompts, and tokens back to text.

A thinking that its budget cuts is followed by `cut_suffix + header`, one that ended itself by
`header`; then the summary is sampled (BRPO §5). The inserted tokens are never trained. Which ids
these are comes from the tokenizer. A think-end marker is one token, several, or there is none: then
a thinking is an ordinary answer, which ends with the turn.
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from typing import Any

# Ends of a turn in the vocabularies of common chat models, besides the tokenizer's own EOS and
# those that a generation_config names.
TURN_ENDS = (
    "<|im_end|>", "<|endoftext|>",  # Qwen
    "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>",  # Llama
    "<end_of_turn>",  # Gemma
    "<|end|>", "<|return|>",  # Phi, gpt-oss
    "<|user|>", "<|observation|>",  # GLM begins the next turn instead of ending its own
)  # fmt: skip


@dataclass(frozen=True)
class ThinkingFormat:
    """How a family of models writes a thinking and a final answer.

    Attributes:
        name: For manifests.
        think_open: Ends every prompt; may be empty.
        think_close: Ends a thinking. Empty where the model has no such marker: then the end of the
            turn does.
        cut_suffix: Inserted after a thinking that its budget cut; holds `think_close` once. By
            default two ellipses before it.
        header: Inserted before every summary.
        chat_template: Whether conversations go through the tokenizer's chat template.
    """

    name: str = "chat"
    think_open: str = "<think>\n"
    think_close: str = "</think>"
    cut_suffix: str = ""
    header: str = "\n\n**Final Answer**\n"
    chat_template: bool = True

    def __post_init__(self) -> None:
        if not self.cut_suffix:
            made = f"...\n\n...\n\n{self.think_close}".rstrip()
            object.__setattr__(self, "cut_suffix", made)
        if self.think_close and self.cut_suffix.count(self.think_close) != 1:
            raise ValueError(
                f"cut_suffix {self.cut_suffix!r} must hold think_close {self.think_close!r} exactly"
                " once: it ends the thinking that a budget cut."
            )
        if self.think_close and self.think_close in self.header:
            raise ValueError(
                f"header {self.header!r} holds think_close {self.think_close!r}; leave it out, the "
                "thinking has ended there."
            )


# Name → (format, which models have it).
FORMATS = {
    "chat": (ThinkingFormat(), "models that think in <think> tags"),
    "r1": (ThinkingFormat("r1"), "DeepSeek-R1 and its distillations; the published runs"),
    "qwen3": (ThinkingFormat("qwen3"), "Qwen3 and other hybrid thinkers"),
    "countdown": (ThinkingFormat("countdown"), "the embedded model"),
    "plain": (
        ThinkingFormat("plain", chat_template=False),
        "base models with <think> tags: text in, text out",
    ),
    "unmarked": (
        ThinkingFormat("unmarked", think_open="", think_close=""),
        "models without thinking tags; their answer's own text is the thinking",
    ),
    "harmony": (
        ThinkingFormat(
            "harmony",
            think_open="<|channel|>analysis<|message|>",
            think_close="<|end|>",
            header="<|start|>assistant<|channel|>final<|message|>**Final Answer**\n",
        ),
        "gpt-oss: the analysis channel, then the final one",
    ),
    "magistral": (ThinkingFormat("magistral", "[THINK]", "[/THINK]"), "Mistral's thinkers"),
}
COUNTDOWN = FORMATS["countdown"][0]
AUTO = "auto"  # by what tokenizer and chat template say
Format = ThinkingFormat | str | Mapping[str, Any] | None  # as `choose_format` takes it


@dataclass(frozen=True)
class ThinkingTokens:
    """What an engine needs of a format, in token ids.

    Attributes:
        close_id: The think-end marker; None where it is several tokens, or there is none.
        eos_ids: Tokens that end a turn.
        pad_id: Fills rows; never attended to, and never part of a text.
        cut_ids: Inserted after a thinking that its budget cut.
        header_ids: Inserted after a thinking that ended itself.
        fmt: The format.
        why: Why this format, in words.
        tokenizer: Reads tokens, where the marker is several of them.
    """

    close_id: int | None
    eos_ids: frozenset[int]
    pad_id: int
    cut_ids: tuple[int, ...]
    header_ids: tuple[int, ...]
    fmt: ThinkingFormat = ThinkingFormat()
    why: str = field(default="", compare=False)
    tokenizer: Any = field(default=None, compare=False, repr=False)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a thinking by themselves."""
        return self.eos_ids if self.close_id is None else self.eos_ids | {self.close_id}

    @property
    def stop_text(self) -> str:
        """The marker where it is several tokens, so that a text has to be looked at; else empty."""
        return self.fmt.think_close if self.close_id is None else ""

    def stops(self, thinks: bool) -> dict[str, Any]:
        """Where a thinking, or a summary, stops: settings of a request, as vLLM knows them."""
        ids = self.stop_ids if thinks else self.eos_ids
        return {
            "stop_token_ids": sorted(ids),
            "stop": [self.stop_text] if thinks and self.stop_text else [],
            "include_stop_str_in_output": True,
            "ignore_eos": True,  # it is among the stops where it should be
            "skip_special_tokens": False,  # the marker is special in some vocabularies
        }

    @property
    def longest_forced(self) -> int:
        """Most tokens that are inserted before a summary."""
        return max(len(self.cut_ids), len(self.header_ids))

    def end(self, thinking: Sequence[int]) -> str:
        """How a thinking ends with the last of its tokens.

        Returns:
            `closed` by its marker (by the end of the turn where the format has none), `eos` by the
            end of the turn instead, or `` where it goes on.
        """
        if not thinking:
            return ""
        last, marker = thinking[-1], self.stop_text
        if last in self.eos_ids:
            return "eos" if self.fmt.think_close else "closed"
        if last == self.close_id:
            return "closed"
        # By the text, since the marker's last token may hold what follows it, such as ">\n\n".
        tail = thinking[-len(marker) - 1 :] if marker and marker[-1] in self.decode([last]) else ()
        return "closed" if marker and marker in self.decode(tail) else ""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, without EOS; other special tokens stay.

        Padding has no place among sampled tokens, so what looks like it is text: many vocabularies
        pad with an ordinary token such as `!`.
        """
        kept, read = [i for i in ids if i not in self.eos_ids], self.tokenizer.decode
        return read(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def first_end(self, ids: Sequence[int], thinks: bool) -> int:
        """Tokens of a thinking, or of a summary, up to the one that ends it; else all of them."""
        reach = len(self.stop_text) + 1
        for size, token in enumerate(ids, 1):
            if self.end(ids[max(0, size - reach) : size]) if thinks else token in self.eos_ids:
                return size
        return len(ids)

    def kept(self, thinking: Sequence[int]) -> int:
        """Tokens of a thinking that a summary can stand on: all but the end of an unmarked turn."""
        ended = not self.fmt.think_close and bool(thinking) and thinking[-1] in self.eos_ids
        return len(thinking) - ended

    def markers(self, ids: Sequence[int]) -> int:
        """How many think-end markers stand in some tokens."""
        if self.close_id is not None:
            return list(ids).count(self.close_id)
        return self.decode(ids).count(self.stop_text) if self.stop_text else 0

    def forced(self, end: str, cut: int, length: int) -> tuple[int, ...]:
        """What is inserted after the first `cut` tokens of a thinking of `length` tokens.

        Args:
            end: How the thinking ended: `closed`, `eos` or `length`.
            cut: Tokens kept, at most `length`.
            length: Tokens of the whole thinking that a summary can stand on (`kept`).
        """
        return self.cut_ids if cut < length or end == "length" else self.header_ids

    def describe(self, prompt: Sequence[int]) -> str:
        """The format in words, with a prompt (token ids) as the model sees it for an example."""
        fmt, read = self.fmt, self.tokenizer.decode
        if self.close_id is not None:
            how = f"a thinking ends with {fmt.think_close!r}, one token"
        elif fmt.think_close:
            how = f"a thinking ends with {fmt.think_close!r}, spelled in several tokens"
        else:
            how = "a thinking is the answer's own text and ends with the turn"
        ends = ", ".join(repr(read([i])) for i in sorted(self.eos_ids))
        return (
            f"Thinking format {fmt.name!r} ({self.why}): {how}; a turn ends with {ends}; a summary "
            f"follows {read(list(self.cut_ids))!r}. Another: thinking_format. A prompt as the "
            f"model sees it:\n{read(list(prompt))!r}"
        )

    def warn_of_eos(self, share: float) -> None:
        """Warn where more than a tenth of the thinkings ended their turn instead of being closed.

        Args:
            share: Of the thinkings; NaN where there are none.
        """
        if share > 0.1:
            warnings.warn(
                "more than a tenth of the thinkings ended their turn instead of closing the "
                f"thinking with {self.fmt.think_close!r}, and each of them scores 0 by the "
                "method's rule. Where the model does not use that marker, set "
                "thinking_format='unmarked' (or its own format); where it does, it has to learn to "
                "close, or check_format=False trains without the rule.",
                stacklevel=3,
            )


def encode(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text that goes on after another: no BOS, and no word boundary before it."""
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if len(ids) > 1 and not text.startswith(" ") and tokenizer.decode(ids[:1]).strip() == "":
        pieces = tokenizer.convert_ids_to_tokens(ids[:1])
        return ids[1:] if pieces == ["▁"] else ids  # as SentencePiece begins a text
    return ids


def resolve_tokens(
    tokenizer: Any, fmt: Format = None, eos_ids: Sequence[int] = ()
) -> ThinkingTokens:
    """The ids of a format in a tokenizer's vocabulary.

    Args:
        tokenizer: Of the model.
        fmt: As `choose_format` takes it.
        eos_ids: Ends of a turn that the tokenizer does not know, such as a generation_config's.

    Raises:
        ValueError: there is no EOS token or no header, or the vocabulary cannot spell the marker.
    """
    fmt, why = choose_format(tokenizer, fmt)
    close = encode(tokenizer, fmt.think_close) if fmt.think_close else []
    if fmt.think_close and (not close or tokenizer.unk_token_id in close):
        raise ValueError(
            f"the think-end marker {fmt.think_close!r} cannot be written in this tokenizer's "
            "vocabulary, so a thinking could not be seen to end. Set thinking_format to "
            '"unmarked", or to one with the model\'s own marker, such as {"think_close": …}.'
        )
    if not (header := encode(tokenizer, fmt.header)):
        raise ValueError(
            f"the header {fmt.header!r} is no token in this tokenizer; expected one or more, "
            "which stand between a thinking and its summaries in a packed tree. Give the format a "
            'header such as "\\n\\n".'
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "the tokenizer has no EOS token, so a summary could never end. Set tokenizer.eos_token."
        )
    # A turn's end need not be among the special tokens: Gemma's is an added one.
    known = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    known |= tokenizer.get_added_vocab()
    close_id = close[0] if len(close) == 1 else None
    ends = {*eos_ids, tokenizer.eos_token_id}
    ends |= {known[text] for text in TURN_ENDS if text in known}
    pad = tokenizer.pad_token_id
    return ThinkingTokens(
        close_id=close_id,
        eos_ids=frozenset(ends - {close_id}),
        pad_id=tokenizer.eos_token_id if pad is None else pad,
        cut_ids=tuple(encode(tokenizer, fmt.cut_suffix + fmt.header)),
        header_ids=tuple(header),
        fmt=fmt,
        why=why,
        tokenizer=tokenizer,
    )


def choose_format(tokenizer: Any, wanted: Format = None) -> tuple[ThinkingFormat, str]:
    """A format and why it was chosen.

    Args:
        tokenizer: Of the model.
        wanted: A format, its name in `FORMATS`, or fields that differ from those of the one called
            `name` (or of what the tokenizer says); None or `auto`: what the tokenizer and its chat
            template say.

    Raises:
        ValueError: there is no such format or field.
    """
    if isinstance(wanted, ThinkingFormat):
        return wanted, "as given"
    wanted = None if wanted in ("", AUTO) else wanted
    given = {"name": wanted} if isinstance(wanted, str) else dict(wanted or {})
    if "think_close" in given:
        given.setdefault("cut_suffix", "")
    if isinstance(wanted, str) and wanted not in FORMATS:
        listed = "; ".join(f"{name!r}: {words}" for name, (_, words) in FORMATS.items())
        raise ValueError(f"thinking_format is {wanted!r}; expected {AUTO!r} or one of {listed}.")
    known = [one.name for one in fields(ThinkingFormat)]
    if strange := sorted(set(given) - set(known)):
        raise ValueError(f"thinking_format has no field {strange[0]!r}; its fields are {known}.")
    name, why = given.get("name"), "as asked for"
    if name not in FORMATS:
        name, found = _detected(tokenizer)
        why = why if given else found
    fmt = FORMATS[name][0]
    if not getattr(tokenizer, "chat_template", None):
        fmt = replace(fmt, chat_template=False)
    return replace(fmt, **given), why


def _detected(tokenizer: Any) -> tuple[str, str]:
    """The name of the format that a tokenizer speaks, and why."""
    template = str(getattr(tokenizer, "chat_template", None) or "")

    def is_token(text: str) -> bool:
        ids = encode(tokenizer, text)
        return len(ids) == 1 and ids[0] != tokenizer.unk_token_id

    one, told = is_token("</think>"), "its vocabulary has </think> as one token"
    named, spelled = encode(tokenizer, COUNTDOWN.header), "think>" in template
    channels, brackets = "<|channel|>analysis" in template, "[/THINK]" in template
    rows = (
        ("harmony", channels and is_token("<|channel|>"), "its chat template writes channels"),
        ("magistral", brackets and is_token("[/THINK]"), "its chat template knows [THINK]"),
        ("plain", one and not template, f"{told}, and it has no chat template"),
        ("countdown", one and len(named) == 1, "its vocabulary has the header as one token"),
        ("r1", one and "<｜Assistant｜>" in template, f"{told}, its chat template is DeepSeek's"),
        ("qwen3", one and "enable_thinking" in template, f"{told}; thinking can be switched"),
        ("chat", one, told),
        ("chat", spelled, "its chat template knows <think>; </think> is several tokens"),
        ("unmarked", True, "vocabulary and chat template know no marker such as </think>"),
    )
    return next((name, why) for name, holds, why in rows if holds)


def fit_verifier(verifier: Any, fmt: ThinkingFormat) -> Any:
    """A verifier that looks for the format's own marker and header, where it looked for others.

    One that looks for no marker (`think_close=None`) stays as it is.
    """
    close, header = (getattr(verifier, name, None) for name in ("think_close", "header"))
    changed = {}
    if close not in (None, fmt.think_close):
        changed["think_close"] = fmt.think_close or None
    if header and header not in fmt.header:
        changed["header"] = fmt.header.strip()
    made = copy.copy(verifier) if changed else verifier
    for name, value in changed.items():
        setattr(made, name, value)
    return made


def what_is_wrong(prompt: Any) -> str:
    """What keeps a prompt from being one, and the fix; empty where it is one."""
    if isinstance(prompt, str):
        return "" if prompt.strip() else "is empty; drop such rows with dataset.filter."
    if not isinstance(prompt, Sequence) or not all(isinstance(m, Mapping) for m in prompt):
        return (
            f"is {prompt!r:.60} ({type(prompt).__name__}); expected a text or a conversation, "
            "[{'role': 'user', 'content': ...}]."
        )
    if not prompt:
        return "is a conversation without messages; drop such rows with dataset.filter."
    for message in prompt:
        try:
            of_text(message)
        except (KeyError, TypeError):
            return f"has the message {message!r:.90}; expected a 'content' of text only."
        if not (isinstance(role := message.get("role"), str) and role):
            return f"has the message {message!r:.90} without a 'role'."
    if prompt[-1]["role"] == "assistant":
        return "ends with a turn of the assistant, where its thinking should begin; drop that turn."
    return ""


def prompt_ids(
    prompt: str | Sequence[Mapping[str, Any]],
    tokenizer: Any,
    fmt: ThinkingFormat,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a prompt; the think-open marker ends it, exactly once.

    Args:
        prompt: A text, taken as it is, or a conversation, which goes through the chat template
            (its contents joined by blank lines where the format has none).
        tokenizer: Of the model that will think.
        fmt: The model's format.
        chat_template_kwargs: For the chat template, such as `{"enable_thinking": True}`.

    Raises:
        ValueError: it is no prompt, the template closes the thinking, or there is no template.
    """
    if wrong := what_is_wrong(prompt):
        raise ValueError(f"a prompt {wrong}")
    plain, text = isinstance(prompt, str) or not fmt.chat_template, prompt
    if not isinstance(prompt, str):
        prompt = [of_text(message) for message in prompt]
        text = "".join(f"{message['content']}\n\n" for message in prompt)
    if not plain:
        settings = {"add_generation_prompt": True, "tokenize": False}
        settings |= chat_template_kwargs or {}
        text = tokenizer.apply_chat_template(prompt, **settings)
    text, bos = _opened(text, prompt, fmt), tokenizer.bos_token_id
    bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not plain or bos is None or bare[:1] == [bos]:  # a template writes BOS itself
        return bare
    # What a tokenizer puts at the end, such as EOS, has no place in a prompt.
    begins = list(tokenizer(text)["input_ids"])[:1] == [bos]
    return [bos, *bare] if begins else bare


def _opened(text: str, prompt: Any, fmt: ThinkingFormat) -> str:
    """The text with the think-open marker once; what a template wrote after it stays."""
    marker, close = fmt.think_open.strip(), fmt.think_close
    begun = ""  # what the template wrote after the last message
    if not isinstance(prompt, str):
        said = prompt[-1]["content"].strip()
        begun = text[text.rfind(said) + len(said) :] if said in text else text
    opened = begun.rfind(marker) if marker else -1
    ends_turns = close in TURN_ENDS  # a template writes it after each message
    shut = not ends_turns and begun.rfind(close) > opened
    if close and (shut or text.rstrip().endswith(close)):
        raise ValueError(
            f"the prompt ends with {text[text.rfind(close) :]!r}: the chat template switches "
            "thinking off. Pass chat_template_kwargs={'enable_thinking': True}, or leave "
            "enable_thinking out; or set thinking_format='unmarked', which takes the answer's own "
            "text as the thinking."
        )
    if marker and text.rstrip().endswith(marker):
        return text.rstrip().removesuffix(marker) + fmt.think_open
    return text if opened >= 0 else text + fmt.think_open


def of_text(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose parts are one text: many templates print a list of parts as it is."""
    content = message["content"]
    parts = [content] if isinstance(content, str) else [part["text"] for part in content]
    return {**message, "content": "".join(parts)}


def text_and_ends(tokens: ThinkingTokens, ids: Sequence[int]) -> tuple[str, list[int]]:
    """The text of a thinking and, per token, the character before which it ends.

    A token that is only part of a character ends where the character before it does. EOS has no
    text.
    """
    reader = PieceReader(tokens)
    pieces = [reader.read(token) for token in ids]
    if pieces:
        pieces[-1] += reader.rest()
    return "".join(pieces), list(accumulate(map(len, pieces)))


class PieceReader:
    """What each token adds to a text that grows, in complete characters; linear in the tokens.

    As streaming servers do it: decode from a little before the token, and hold back a character
    until its bytes are complete.
    """

    def __init__(self, tokens: ThinkingTokens):
        self.tokens = tokens
        self._ids: list[int] = []  # a known context, then what is not read out yet
        self._known = 0

    def read(self, token: int) -> str:
        """The text that a token completes; often its own, sometimes none."""
        self._ids.append(token)
        added = self.rest()
        if not added or added.endswith("\ufffd"):
            return ""
        self._ids, self._known = self._ids[self._known :], len(self._ids) - self._known
        return added

    def rest(self) -> str:
        """What was held back, should no token follow."""
        known = self.tokens.decode(self._ids[: self._known])
        return self.tokens.decode(self._ids)[len(known) :]
