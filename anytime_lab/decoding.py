"""Tokens → text, and where in the text each token ends."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from anytime_lab.prompts import ThinkingTokens


def decode(tokenizer: PreTrainedTokenizerBase, tokens: ThinkingTokens, ids: Sequence[int]) -> str:
    """The text of tokens, without EOS and padding; other special tokens stay."""
    kept = [i for i in ids if i not in tokens.eos_ids and i != tokens.pad_id]
    return tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def text_and_ends(
    tokenizer: PreTrainedTokenizerBase, tokens: ThinkingTokens, ids: Sequence[int]
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


def _pieces_in_context(
    tokenizer: PreTrainedTokenizerBase, tokens: ThinkingTokens, ids: Sequence[int]
) -> list[str]:
    """What each token adds to the text, where tokens do not decode one by one.

    As streaming servers do it: decode from a little before the token, and hold back a character
    until its bytes are complete. Linear in the number of tokens.
    """
    pieces = []
    before, read = 0, 0  # ids[before:read] is context whose text is already out
    for end in range(1, len(ids) + 1):
        known = decode(tokenizer, tokens, ids[before:read])
        text = decode(tokenizer, tokens, ids[before:end])
        complete = not text.endswith("\ufffd") or end == len(ids)
        if complete and len(text) > len(known):
            pieces.append(text[len(known) :])
            before, read = read, end
        else:
            pieces.append("")
    return pieces
