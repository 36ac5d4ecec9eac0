"""Countdown expressions: parse, evaluate exactly, compare. No `eval`."""

import ast
import operator
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

MAX_CHARS = 1000  # an expression over a handful of numbers; longer ones are noise

_SIGNS = str.maketrans("×·⋅∗÷∕−–＋（）[]＝$`", "****//--+()()=  ")
_WORDS = (
    (re.compile(r"\\(?:times|cdot)"), "*"),
    (re.compile(r"\\div"), "/"),
    (re.compile(r"\\(?:left|right|,|!)"), ""),
)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_NAMED = re.compile(r"\s*[a-zA-Z]\s*=")  # x = (7-6)*3
_PLAIN = re.compile(r"(?:\d{1,9}(?!\d)|[-+*/() ])+")
_NUMBER = re.compile(r"\d+")
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Expression:
    """What an expression uses and what it comes to.

    numbers: the numbers in it, sorted. value: exact; None where it divides by zero.
    """

    numbers: tuple[int, ...]
    value: Fraction | None


@lru_cache(maxsize=100_000)  # an update grades a thousand summaries, most of them alike
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
        text = word.sub(sign, text)
    while (plain := _FRACTION.sub(r"((\1)/(\2))", text)) != text:
        text = plain
    left, equals, right = text.partition("=")
    expression = _evaluate(left)
    if expression is None or not equals:
        return expression
    stated = _evaluate(right)
    return expression if stated is not None and stated.value == expression.value else None


def _evaluate(text: str) -> Expression | None:
    """None on any error of syntax; Python's parser reads it, and nothing is run."""
    text = " ".join(text.split())
    if not _PLAIN.fullmatch(text):
        return None
    try:
        text = _NUMBER.sub(lambda m: str(int(m.group())), text)  # 007 is 7
        tree = ast.parse(text, mode="eval").body
        numbers = sorted(n.value for n in ast.walk(tree) if isinstance(n, ast.Constant))
        return Expression(tuple(numbers), _value(tree))
    except (SyntaxError, MemoryError, RecursionError, KeyError):
        return None


def _value(node: ast.expr) -> Fraction | None:
    """Of a number, or of an operator between two; a KeyError for all else."""
    if isinstance(node, ast.Constant):
        return Fraction(node.value)
    if not isinstance(node, ast.BinOp):
        raise KeyError(node)
    left, right, apply = _value(node.left), _value(node.right), _OPERATORS[type(node.op)]
    divided = apply is operator.truediv and right == 0
    return None if left is None or right is None or divided else apply(left, right)
