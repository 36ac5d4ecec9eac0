"""Golds of any type as text."""

from collections.abc import Sequence
from fractions import Fraction
from math import isfinite
from typing import Any

from anytime_lab.verify.latex import UnreadableError


def gold_text(gold: Any) -> str:
    """A gold of any type as text.

    Raises:
        UnreadableError: None, a truth value, not finite, empty, or no number or text at all.
    """
    if hasattr(gold, "item") and not isinstance(gold, str):
        gold = gold.item()  # numpy and torch scalars
    if isinstance(gold, float) and not isfinite(gold):
        raise UnreadableError("unreadable gold")
    if isinstance(gold, bool) or not isinstance(gold, (str, int, float, Fraction)):
        raise UnreadableError("unreadable gold")
    if isinstance(gold, float):
        gold = int(gold) if gold.is_integer() else repr(gold)
    text = str(gold).strip()
    if not text:
        raise UnreadableError("unreadable gold")
    return text


def all_required(golds: Sequence[Any]) -> str:
    """One gold that asks for every one of several answers, in any order."""
    return "; ".join(gold_text(gold) for gold in golds)
