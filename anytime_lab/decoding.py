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

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens: ThinkingTokens):
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
