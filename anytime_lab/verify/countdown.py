"""Countdown expressions: parse, evaluate exactly, compare. No `eval`, no recursion, linear time."""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARS = 1000  # an expression over a handful of numbers; longer ones are noise

_TOKEN = re.compile(r"\s*(\d{1,9}(?!\d)|[-+*/()])")
_SIGNS = str.maketrans(
    {
        "×": "*",
        "·": "*",
        "⋅": "*",
        "∗": "*",
        "÷": "/",
        "∕": "/",
        "−": "-",
        "–": "-",
        "＋": "+",
    }
    | {"（": "(", "）": ")", "[": "(", "]": ")", "＝": "=", "$": " ", "`": " "}
    | {chr(0xFF10 + d): str(d) for d in range(10)}
)
_WORDS = (
    ("\\times", "*"),
    ("\\cdot", "*"),
    ("\\div", "/"),
    ("\\left", ""),
    ("\\right", ""),
    ("\\,", ""),
    ("\\!", ""),
)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_NAMED = re.compile(r"\s*[a-zA-Z]\s*=")  # x = (7-6)*3
_RANK = {"+": 1, "-": 1, "*": 2, "/": 2}


@dataclass(frozen=True)
class Expression:
    """What an expression uses and what it comes to.

    numbers: the numbers in it, sorted. value: exact; None where it divides by zero.
    """

    numbers: tuple[int, ...]
    value: Fraction | None


def read_expression(text: str) -> Expression | None:
    """Read whole numbers, binary + − × ÷ and brackets; None where the text is anything else.

    A sign in front (`-3`) and a product without its operator (`2(3)`) are not part of the game.
    A fraction is a division, and a name before it (`x =`) says nothing. An equation such as
    `(7-6)*3 = 3` is read as its left side if the right one states its value.
    """
    if len(text) > MAX_CHARS:
        return None
    text = _NAMED.sub("", text.translate(_SIGNS), count=1)
    for word, sign in _WORDS:
        text = text.replace(word, sign)
    while (plain := _FRACTION.sub(r"((\1)/(\2))", text)) != text:
        text = plain
    left, equals, right = text.partition("=")
    expression = _evaluate(left)
    if expression is None or not equals:
        return expression
    stated = _evaluate(right)
    return expression if stated is not None and stated.value == expression.value else None


def _evaluate(text: str) -> Expression | None:
    """Two stacks, one pass (the shunting yard); None on any error of syntax."""
    numbers: list[int] = []
    values: list[Fraction | None] = []
    signs: list[str] = []
    wants_value = True
    at = 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            return None
        at = match.end()
        token = match.group(1)
        if token == "(" or token.isdigit():
            if not wants_value:
                return None
            if token == "(":
                signs.append(token)
            else:
                numbers.append(int(token))
                values.append(Fraction(int(token)))
                wants_value = False
            continue
        if wants_value:
            return None
        rank = _RANK.get(token, 0)
        while signs and signs[-1] != "(" and _RANK[signs[-1]] >= rank:
            _apply(signs.pop(), values)
        if token != ")":
            signs.append(token)
            wants_value = True
        elif signs:
            signs.pop()
        else:
            return None
    if wants_value or "(" in signs:
        return None
    while signs:
        _apply(signs.pop(), values)
    return Expression(tuple(sorted(numbers)), values[0])


def _apply(sign: str, values: list[Fraction | None]) -> None:
    right, left = values.pop(), values.pop()
    if left is None or right is None or (sign == "/" and right == 0):
        values.append(None)
    elif sign == "+":
        values.append(left + right)
    elif sign == "-":
        values.append(left - right)
    else:
        values.append(left * right if sign == "*" else left / right)
