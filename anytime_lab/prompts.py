"""Thinking tags, the forced text after a thinking, prompts, and tokens back to text.

A thinking that its budget cuts is followed by `cut_suffix + header`, one that ended itself by
`header`; then the summary is sampled (BRPO §5). The inserted tokens are never trained. Which ids
these are comes from the tokenizer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Ends of a turn in the vocabularies of common chat models, besides the tokenizer's own EOS.
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
        think_open: Ends every prompt.
        think_close: Ends a thinking; one token of the vocabulary.
        cut_suffix: Inserted after a thinking that its budget cut; holds `think_close` once.
        header: Inserted before every summary.
        chat_template: Whether conversations go through the tokenizer's chat template.
    """

    name: str = "chat"
    think_open: str = "<think>\n"
    think_close: str = "</think>"
    cut_suffix: str = "...\n\n...\n\n</think>"
    header: str = "\n\n**Final Answer**\n"
    chat_template: bool = True

    def __post_init__(self) -> None:
        if not self.think_close or self.cut_suffix.count(self.think_close) != 1:
            raise ValueError(
                f"cut_suffix {self.cut_suffix!r} must hold think_close {self.think_close!r} exactly"
                " once: it ends the thinking that a budget cut."
            )
        if self.think_close in self.header:
            raise ValueError(
                f"header {self.header!r} holds think_close {self.think_close!r}; leave it out, the "
                "thinking has ended there."
            )


R1 = ThinkingFormat(name="r1")  # DeepSeek-R1 and its distillations; the published runs
QWEN3 = ThinkingFormat(name="qwen3")
COUNTDOWN = ThinkingFormat(name="countdown")  # the embedded model
PLAIN = ThinkingFormat(name="plain", chat_template=False)  # base models: text in, text out


@dataclass(frozen=True)
class ThinkingTokens:
    """What an engine needs of a format, in token ids.

    Attributes:
        close_id: The think-end marker.
        eos_ids: Tokens that end a turn.
        pad_id: Fills rows; never attended to.
        cut_ids: Inserted after a thinking that its budget cut.
        header_ids: Inserted after a thinking that ended itself.
    """

    close_id: int
    eos_ids: frozenset[int]
    pad_id: int
    cut_ids: tuple[int, ...]
    header_ids: tuple[int, ...]

    def forced(self, end: str, cut: int, length: int) -> tuple[int, ...]:
        """What is inserted after the first `cut` tokens of a thinking of `length` tokens.

        Args:
            end: How the thinking ended: `closed`, `eos` or `length`.
            cut: Tokens kept, at most `length`.
            length: Tokens of the whole thinking.
        """
        return self.cut_ids if cut < length or end == "length" else self.header_ids


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def resolve_tokens(tokenizer: Any, fmt: ThinkingFormat) -> ThinkingTokens:
    """The ids of a format in a tokenizer's vocabulary.

    Raises:
        ValueError: the think-end marker is not one token, or there is no EOS token.
    """
    close = _encode(tokenizer, fmt.think_close)
    if len(close) != 1 or close[0] == tokenizer.unk_token_id:
        raise ValueError(
            f"the think-end marker {fmt.think_close!r} is {len(close)} tokens ({close}) in this "
            "tokenizer; expected one token, so that a thinking can be seen to end. Pass a format "
            "with the model's own marker (ThinkingFormat(think_close=..., cut_suffix=...)), or add "
            f"it: tokenizer.add_tokens([{fmt.think_close!r}]) and "
            "model.resize_token_embeddings(len(tokenizer))."
        )
    if not (header := _encode(tokenizer, fmt.header)):
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
    ends = {known[text] for text in TURN_ENDS if text in known}
    pad = tokenizer.pad_token_id
    return ThinkingTokens(
        close_id=close[0],
        eos_ids=frozenset({tokenizer.eos_token_id, *ends}),
        pad_id=tokenizer.eos_token_id if pad is None else pad,
        cut_ids=tuple(_encode(tokenizer, fmt.cut_suffix + fmt.header)),
        header_ids=tuple(header),
    )


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
        content = message.get("content")
        parts = content if isinstance(content, Sequence) else [content]
        if not isinstance(content, str) and not all(
            isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts
        ):
            return f"has the message {message!r:.90}; expected a 'content' of text only."
        if not message.get("role"):
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
    text = _text(prompt, tokenizer, fmt, chat_template_kwargs)
    marker = fmt.think_open.strip()
    if text.rstrip().endswith(fmt.think_close):
        raise ValueError(
            f"the prompt ends with {fmt.think_close!r}: the chat template switches thinking off. "
            "Pass chat_template_kwargs={'enable_thinking': True}, or leave enable_thinking out."
        )
    if text.rstrip().endswith(marker):
        text = text.rstrip().removesuffix(marker)
    text += fmt.think_open
    bos = getattr(tokenizer, "bos_token", None)
    plain = isinstance(prompt, str) or not fmt.chat_template  # a template writes BOS itself
    special = plain and not (bos and text.startswith(bos))
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


def _text(prompt: Any, tokenizer: Any, fmt: ThinkingFormat, kwargs: Mapping | None) -> str:
    if isinstance(prompt, str):
        return prompt
    prompt = [{**message, "content": _content(message["content"])} for message in prompt]
    if not fmt.chat_template:
        return "\n\n".join(message["content"] for message in prompt) + "\n\n"
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(
            "the prompt is a conversation, but the tokenizer has no chat template. Pass the format "
            "PLAIN (anytime_lab.prompts) for a base model, or set tokenizer.chat_template."
        )
    return tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, tokenize=False, **dict(kwargs or {})
    )


def _content(content: str | Sequence[Mapping[str, Any]]) -> str:
    # Many templates print a list of parts as it is, brackets and all.
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def detect_format(tokenizer: Any) -> ThinkingFormat:
    """The format that a tokenizer speaks, by its chat template and vocabulary.

    Returns `R1` or `QWEN3` where the template shows the family, `PLAIN` where there is none.
    """
    template = getattr(tokenizer, "chat_template", None)
    if template is None:
        return PLAIN
    if len(_encode(tokenizer, COUNTDOWN.header)) == 1:
        return COUNTDOWN
    text = template if isinstance(template, str) else str(template)
    if "<｜Assistant｜>" in text:
        return R1
    return QWEN3 if "enable_thinking" in text else ThinkingFormat()


def decode(tokenizer: Any, tokens: ThinkingTokens, ids: Sequence[int]) -> str:
    """The text of tokens, without EOS and padding; other special tokens stay."""
    kept = [i for i in ids if i not in tokens.eos_ids and i != tokens.pad_id]
    return tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def text_and_ends(
    tokenizer: Any, tokens: ThinkingTokens, ids: Sequence[int]
) -> tuple[str, list[int]]:
    """The text of a thinking and, per token, the character before which it ends.

    A token that is only part of a character ends where the character before it does. EOS and
    padding have no text.
    """
    pieces = [decode(tokenizer, tokens, [i]) for i in ids]
    whole = decode(tokenizer, tokens, ids)
    if "".join(pieces) != whole:
        pieces = _pieces_in_context(tokenizer, tokens, ids)
        whole = "".join(pieces)
    ends, length = [], 0
    for piece in pieces:
        length += len(piece)
        ends.append(length)
    return whole, ends


def _pieces_in_context(tokenizer: Any, tokens: ThinkingTokens, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text, where tokens do not decode one by one."""
    reader = PieceReader(tokenizer, tokens)
    pieces = [reader.read(i) for i in ids]
    if pieces:
        pieces[-1] += reader.rest()
    return pieces


class PieceReader:
    """What each token adds to a text that grows, in complete characters; linear in the tokens.

    As streaming servers do it: decode from a little before the token, and hold back a character
    until its bytes are complete.
    """

    def __init__(self, tokenizer: Any, tokens: ThinkingTokens):
        self.tokenizer, self.tokens = tokenizer, tokens
        self._ids: list[int] = []  # a known context, then what is not read out yet
        self._known = 0

    def read(self, token: int) -> str:
        """The text that a token completes; often its own, sometimes none."""
        self._ids.append(token)
        added = self._added()
        if not added or added.endswith("\ufffd"):
            return ""
        self._ids, self._known = self._ids[self._known :], len(self._ids) - self._known
        return added

    def rest(self) -> str:
        """What was held back, should no token follow."""
        return self._added()

    def _added(self) -> str:
        known = decode(self.tokenizer, self.tokens, self._ids[: self._known])
        return decode(self.tokenizer, self.tokens, self._ids)[len(known) :]
