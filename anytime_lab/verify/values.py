"""Expressions of common form: read without sympy, and compared by their values at fixed points.

Numbers, letters, sums, products, powers, roots, functions: most of what algebra has to decide.
Values have many digits, and more where a long number is met: `2^{2019}-1` is not `2^{2019}`.
"""

import contextlib
import operator
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from mpmath import mp

DIGITS = 80  # beyond those of the longest number met
AGREEING = 45  # of them make two values equal
POINTS = 4  # at which expressions in letters are compared
ENOUGH = 2  # of them must be defined
MAX_DIGITS = 50_000  # of a number that is written out; golds of MATH go up to 1500
_STRETCHED = (1, 1, 1, 1, 1 / 5, 1 / 9, 5, 25)


class TooLargeError(Exception):
    """A number of more digits than anybody writes out."""


class UnknownFormError(Exception):
    """The text is no expression of a form that is read here."""


@dataclass
class Point:
    """Values of names, and what was met on the way to a value there.

    digits: of the longest number, before or behind its point. size: before it. crossed: whether a
    logarithm or a root of a number below 0 was taken in letters, which are real only elsewhere.
    """

    names: dict[str, Any] = field(default_factory=dict)
    digits: int = 0
    size: int = 0
    crossed: bool = False


@dataclass(frozen=True)
class Node:
    """A function of parts, a name, or a number. names: all that are in it."""

    function: Callable[..., Any]
    parts: tuple["Node", ...] = ()
    names: frozenset[str] = frozenset()

    def value(self, point: Point) -> Any:
        """The value at a point; an ArithmeticError or a ValueError where there is none."""
        parts = [part.value(point) for part in self.parts]
        if self.function in (_power, _logarithm) and self.names and _is_below_zero(parts[0]):
            point.crossed |= self.function is _logarithm or _above(parts[1]) is None
        value = self.function(*parts) if self.parts else self.function(point)
        digits = int(0.302 * mp.mag(value)) if value else 0  # an error where it is infinite
        point.size, point.digits = max(point.size, digits), max(point.digits, abs(digits))
        if point.digits > MAX_DIGITS:
            raise TooLargeError("too large a number")
        return value


def _node(function: Callable[..., Any], *parts: Node) -> Node:
    return Node(function, parts, frozenset().union(*(part.names for part in parts)))


def _number(value: str | int) -> Node:
    number = int(value)
    return Node(lambda point: mp.mpf(number))


def _is_below_zero(value: Any) -> bool:
    return mp.im(value) == 0 and mp.re(value) < 0


def _power(base: Any, exponent: Any) -> Any:
    """A real root where there is one: -2 is the cube root of -8."""
    if base == 0 and exponent != 0 and not (mp.im(exponent) == 0 and mp.re(exponent) > 0):
        raise ZeroDivisionError
    if base and exponent and mp.mag(exponent * mp.log(base)) > 17:
        raise TooLargeError("too large a number")
    above = _above(exponent) if _is_below_zero(base) else None
    if above is None or mp.isint(exponent):
        return mp.power(base, exponent)
    return (-1) ** above * mp.power(-base, exponent)


def _above(exponent: Any) -> int | None:
    """The numerator of a fraction with an odd denominator; None for any other number."""
    for below in range(1, 20, 2):
        above = mp.nint(mp.re(exponent) * below)
        if abs(exponent - above / below) < mp.mpf(10) ** -AGREEING:
            return int(above)
    return None


def _logarithm(value: Any, base: Any = None) -> Any:
    return mp.log(value) if base is None else mp.log(value) / mp.log(base)


_SIGNS = {
    "+": operator.add,
    "-": operator.sub,
    **dict.fromkeys(("*", "\\cdot", "\\times"), operator.mul),
    **dict.fromkeys(("/", "\\div"), operator.truediv),
}
_FUNCTIONS = {
    **dict.fromkeys(("\\ln", "\\log"), _logarithm),
    "\\exp": mp.exp,
    **{
        f"\\{name}": getattr(mp, name.replace("arc", "a"))
        for stem in ("sin", "cos", "tan", "cot", "sec", "csc")
        for name in (stem, f"arc{stem}", f"{stem}h")
    },
}
_CONSTANTS = {"\\pi": mp.pi, "e": mp.e, "i": mp.mpc(0, 1)}
_CLOSING = {"(": ")", "[": "]", "{": "}", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil", "|": "|"}
_AROUND = {"\\lfloor": mp.floor, "\\lceil": mp.ceil, "|": abs}
_TWO_PARTS = {"\\frac": operator.truediv, "\\binom": mp.binomial}
_COMMANDS = {*_FUNCTIONS, *_TWO_PARTS, "\\sqrt", "\\pi"}
_MIXED = ["number", "\\frac", "{", "number", "}", "{", "number", "}"]  # 3\frac{1}{2}
_GREEK = (
    "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi|chi|psi"
    "|omega|Gamma|Delta|Theta|Lambda|Sigma|Phi|Psi|Omega|ell|hbar"
)
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+)"
    # A derivative, a letter with an accent and a value of a function are like names.
    r"|(?P<name>\\frac\{d\w\}\{d\w\}"
    r"|(?:\\(?:d?dot|bar|hat|vec|tilde|mathrm|overline)\{\s?[\w\\]+\s?\}"
    rf"|\\(?:{_GREEK})(?![a-zA-Z])|[a-zA-Z])'*(?:_(?:[a-zA-Z0-9]|\{{[\w+\-, ]+\}}))?'*"
    r"(?:(?<![ei])(?<!Gamma)\(\w\))?)"
    r"|(?P<sign>\\[a-zA-Z]+|\\.|\S))"
)


class Reader:
    """A recursive descent over the tokens of one text.

    Attributes:
        whole: Names that stand for whole numbers.
        absolute: Whether there are absolute values of letters.

    Raises:
        UnknownFormError: The text is of a form that is not read here.
    """

    def __init__(self, text: str):
        self.tokens = [(m.lastgroup, m[m.lastgroup]) for m in _TOKEN.finditer(text)]
        self.tokens += [("", "")] * 2
        self.at = 0
        self.kind, self.token = self.tokens[0]  # the next one
        self.bars = False  # whether the next one closes a pair of them
        self.whole: set[str] = set()
        self.absolute = False
        self.node = self.sum()
        self.take("")

    def take(self, wanted: str | None = None) -> str:
        token = self.token
        if wanted not in (None, token):
            raise UnknownFormError(f"{token!r} where {wanted!r} is expected")
        self.at += 1
        self.kind, self.token = self.tokens[self.at]
        return token

    def sum(self) -> Node:
        node = self.product()
        while self.token in ("+", "-"):
            node = _node(_SIGNS[self.take()], node, self.product())
        return node

    def product(self) -> Node:
        if self.token in ("+", "-"):
            return _node(_SIGNS[self.take()], _number(0), self.product())
        node = self.factors()
        while self.token in _SIGNS and self.token not in ("+", "-"):
            sign = _SIGNS[self.take()]
            negative = self.token == "-" and self.take()
            other = self.factors()
            node = _node(sign, node, _node(operator.neg, other) if negative else other)
        return node

    def factors(self, of_function: bool = False) -> Node:
        """Factors side by side, which bind closer than `/`."""
        ahead = [
            kind if kind == "number" else token
            for kind, token in self.tokens[self.at : self.at + 8]
        ]
        node, beside = self.power(), operator.add if ahead == _MIXED else operator.mul
        while self.kind == "name" or self.token in _COMMANDS or self.opens():
            if of_function and self.token in _FUNCTIONS:
                break
            node, beside = _node(beside, node, self.power()), operator.mul
        if self.kind == "number":
            raise UnknownFormError("a number behind a factor")
        return node

    def opens(self) -> bool:
        return self.token in _CLOSING and not (self.token == "|" and self.bars)

    def power(self) -> Node:
        node = self.atom()
        while self.token == "!":
            self.take()
            node = _node(mp.factorial, node)
        if self.token != "^":
            return node
        self.take()
        exponent = self.argument()
        if exponent.names == {"T"}:
            raise UnknownFormError("a transposed matrix")
        if exponent.names and not node.names and node.value(Point()) == -1:
            self.whole |= exponent.names
        if self.token in ("^", "!"):
            raise UnknownFormError("x^y^z")
        return _node(_power, node, exponent)

    def argument(self) -> Node:
        """What is in braces, or one token."""
        if self.kind == "number" and len(self.token) > 1:
            raise UnknownFormError("digits without braces")
        return self.atom()

    def enclosed(self) -> Node:
        bars, self.bars = self.bars, self.token == "|"
        opening, node = self.take(), self.sum()
        self.take(_CLOSING[opening])
        self.absolute |= self.bars and bool(node.names)
        self.bars = bars
        return _node(_AROUND[opening], node) if opening in _AROUND else node

    def atom(self) -> Node:
        if self.opens():
            return self.enclosed()
        kind, token = self.kind, self.take()
        if kind == "number":
            return _number(token)
        if token in _CONSTANTS:
            return Node(lambda point: +_CONSTANTS[token])
        if kind == "name":
            if (token == "d" and self.kind == "name") or token == "\\Gamma":
                raise UnknownFormError("a differential, or a function")
            return Node(lambda point: point.names[token], (), frozenset([token]))
        if token in _TWO_PARTS:
            return _node(_TWO_PARTS[token], self.argument(), self.argument())
        if token == "\\sqrt":
            degree = self.enclosed() if self.token == "[" else _number(2)
            return _node(_power, self.argument(), _node(operator.truediv, _number(1), degree))
        return self.function(token)

    def function(self, name: str) -> Node:
        base = power = None
        while name in _FUNCTIONS and self.token in ("_", "^"):
            if self.take() == "_":
                base = self.argument()
            else:
                power = self.argument()
        if power is not None and not power.names and power.value(Point()) == -1:
            name, power = f"\\arc{name[1:]}", None
        if name not in _FUNCTIONS or (base and name != "\\log"):
            raise UnknownFormError(name)
        inside = self.enclosed() if self.token in ("(", "[") else self.factors(of_function=True)
        if self.token in _SIGNS and self.token not in ("+", "-"):
            raise UnknownFormError("where the function ends")
        bases = [base or _number(10)] if name == "\\log" else []
        node = _node(_FUNCTIONS[name], inside, *bases)
        return _node(_power, node, power) if power else node


def _values(
    left: Node, right: Node, whole: Collection[str] = (), exactly: bool = False
) -> Iterator[tuple[Point, Any, Any, Any]]:
    """(point, value, value, how far apart equal ones may be by rounding), where both are defined.

    Fixed points, none of them special: of both signs, then small and large; one point without
    values where there are no names. Names of `whole` get odd and even numbers in turn. Values that
    are far apart have fewer digits, unless they are wanted `exactly`.
    """
    names = sorted(left.names | right.names)
    for number, stretched in enumerate(_STRETCHED[: None if names else 1]):
        point = Point()
        for index, name in enumerate(names):
            below = number < POINTS and (number >> (index % 2)) & 1
            size = mp.mpf(1009 + 377 * index + 613 * number) / (701 + 89 * number) * stretched
            point.names[name] = -size if below else size
            if name in whole:
                point.names[name] = mp.mpf(3 + 5 * number + 2 * index)
        with contextlib.suppress(ArithmeticError, ValueError):
            with mp.workdps(DIGITS):
                a, b = left.value(point), right.value(point)
                differ = abs(a - b) > mp.mpf(10) ** (point.size - DIGITS + 20)
            digits = point.digits
            with mp.workdps(DIGITS + 3 * digits):
                if digits > 8 and (exactly or not differ):  # as many as the longest number needs
                    a, b = left.value(point), right.value(point)
                yield point, a, b, mp.mpf(10) ** -(AGREEING + 2 * digits)


def equal_values(answer: str, gold: str) -> bool | None:
    """Equality by value, at several points where there are letters; None if undefined there.

    Raises:
        UnknownFormError: One of them is of a form that is not read here.
        TooLargeError: A number too long to be written out.
    """
    left, right = Reader(answer), Reader(gold)
    # `\\sqrt{ab}` is `\\sqrt{a}\\sqrt{b}`, and `ln(a/b)` is `ln a - ln b`, where all of it is real,
    # if anywhere; but `ln|a|` is not `ln a`.
    for real in (False,) if left.absolute or right.absolute else (True, False):
        compared = 0
        for point, a, b, apart in _values(left.node, right.node, left.whole | right.whole):
            if real and point.crossed:
                continue
            if abs(a - b) > apart:
                return False
            compared += 1
            if compared == POINTS or not point.names:
                return True
        if compared >= ENOUGH:
            return True
    return None


def common_factor(answer: tuple[str, str], gold: tuple[str, str]) -> Any:
    """The constant that `left - right` of both differ by; None where they differ otherwise.

    Raises:
        UnknownFormError: One of them is of a form that is not read here.
        TooLargeError: A number too long to be written out.
    """
    both = [
        _node(operator.sub, *(Reader(side).node for side in relation))
        for relation in (answer, gold)
    ]
    ratios = []
    for _, a, b, apart in _values(*both, exactly=True):
        if (abs(a) <= apart) != (abs(b) <= apart):
            return None
        if abs(a) > apart:
            ratios.append(a / b)
        if ratios and abs(ratios[-1] - ratios[0]) > apart:
            return None
        if len(ratios) == POINTS:
            break
    return ratios[0] if len(ratios) >= ENOUGH else None
