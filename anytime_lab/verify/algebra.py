"""Decide two expressions: by their values at fixed points, or else with sympy, in worker processes.

Numbers, letters, sums, products, powers, roots, functions are read here: most of what there is to
decide, and faster than a parse. Their values have many digits, and more where a long number is met:
`2^{2019}-1` is not `2^{2019}`. What is of another form goes to math-verify.
"""

import contextlib
import functools
import operator
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import (
    ConversionConfig,
    NormalizationConfig,
    latex2sympy,
)
from math_verify import verify
from mpmath import mp
from sympy.core.random import seed

from anytime_lab.verify.equal import accepted_forms, atoms_alike, decide, equal
from anytime_lab.verify.forms import Form
from anytime_lab.verify.quantities import join_thousands, read_based

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
        if self.function in (_power, mp.log) and self.names and _is_below_zero(parts[0]):
            point.crossed |= self.function == mp.log or _above(parts[1]) is None
        value = self.function(*parts) if self.parts else self.function(point)
        digits = int(0.302 * mp.mag(value)) if value else 0  # an error where it is infinite
        point.size, point.digits = max(point.size, digits), max(point.digits, abs(digits))
        if point.digits > MAX_DIGITS:
            raise TooLargeError("too large a number")
        return value


def _node(function: Callable[..., Any], *parts: Node) -> Node:
    return Node(function, parts, frozenset().union(*(part.names for part in parts)))


def _number(text: str) -> Node:
    """Of its digits; a mixed number has three groups of them."""
    whole, above, below = [*map(int, re.findall(r"\d+", text)), 0, 1][:3]
    return Node(lambda point: mp.mpf(whole * below + above) / below)


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


_SIGNS = {
    "+": operator.add,
    "-": operator.sub,
    **dict.fromkeys(("*", "\\cdot", "\\times"), operator.mul),
    **dict.fromkeys(("/", "\\div"), operator.truediv),
}
_FUNCTIONS = {
    **dict.fromkeys(("\\ln", "\\log"), mp.log),
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
_GREEK = (
    "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi|chi|psi"
    "|omega|Gamma|Delta|Theta|Lambda|Sigma|Phi|Psi|Omega|ell|hbar"
)
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?<![\^_\d])\d+\s*\\frac\s*\{\s*\d+\s*\}\s*\{\s*\d+\s*\}|\d+)"
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
        self.tokens = _TOKEN.finditer(text)
        self.kind = self.token = ""  # of the next one
        self.take()
        self.bars = False  # whether the next one closes a pair of them
        self.whole: set[str] = set()
        self.absolute = False
        self.node = self.read()
        self.take("")

    def take(self, wanted: str | None = None) -> str:
        token = self.token
        if wanted not in (None, token):
            raise UnknownFormError(f"{token!r} where {wanted!r} is expected")
        found = next(self.tokens, None)
        self.kind, self.token = (found.lastgroup, found[found.lastgroup]) if found else ("", "")
        return token

    def read(self, binding: int = 1, of_function: bool = False) -> Node:
        """What follows, up to a sign that binds less closely: 1 a sum, 2 a product, 3 neither.

        Factors side by side bind closer than `/`; the next function is no factor `of_function`.
        """
        if self.token == "-" or (self.token == "+" and binding < 3):
            node = _node(_SIGNS[self.take()], _number("0"), self.read(max(binding, 2)))
        else:
            node = self.power()
        while True:
            closely = 1 if self.token in ("+", "-") else 2
            factor = self.kind == "name" or self.token in _COMMANDS or self.opens()
            if self.token in _SIGNS and closely >= binding:
                node = _node(_SIGNS[self.take()], node, self.read(closely + 1))
            elif factor and not (of_function and self.token in _FUNCTIONS):
                node = _node(operator.mul, node, self.power())
            elif self.kind == "number":
                raise UnknownFormError("a number behind a factor")
            else:
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
        if exponent.names == {"T"} or self.token in ("^", "!"):
            raise UnknownFormError("a transposed matrix, or x^y^z")
        if exponent.names and not node.names and node.value(Point()) == -1:
            self.whole |= exponent.names
        return _node(_power, node, exponent)

    def argument(self) -> Node:
        """What is in braces, or one token."""
        if self.kind == "number" and len(self.token) > 1:
            raise UnknownFormError("digits without braces")
        return self.atom()

    def enclosed(self) -> Node:
        bars, self.bars = self.bars, self.token == "|"
        opening, node = self.take(), self.read()
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
            degree = self.enclosed() if self.token == "[" else _number("2")
            return _node(_power, self.argument(), _node(operator.truediv, _number("1"), degree))
        return self.function(token)

    def function(self, name: str) -> Node:
        marks: dict[str, Node] = {}  # base and power
        while name in _FUNCTIONS and self.token in ("_", "^"):
            marks |= {self.take(): self.argument()}
        power = marks.get("^")
        if power and not power.names and power.value(Point()) == -1:
            name, power = f"\\arc{name[1:]}", None
        if name not in _FUNCTIONS or ("_" in marks and name != "\\log"):
            raise UnknownFormError(name)
        inside = self.enclosed() if self.token in ("(", "[") else self.read(3, of_function=True)
        if self.token in _SIGNS and self.token not in ("+", "-"):
            raise UnknownFormError("where the function ends")
        bases = [marks.get("_", _number("10"))] if name == "\\log" else []
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


_NORMALIZE = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none"
)
# Capitals are other names: `r` is not `R`.
_CONVERT = ConversionConfig(lowercase_symbols=False)
_RELATION = re.compile(r"\\relation(\\le|\\ge|\\ne|[<>=])(.*)\\to (.*)", re.S)
_PRIMES = re.compile(r"(?:[a-zA-Z0-9]|\}|\))'+")
_REFUSED = [
    (re.compile(r"(?<![\^_\d.])\d+ +\d"), "two numbers side by side"),  # neither 12 nor 2
    # The parser multiplies it out.
    (re.compile(r"\\binom\{\d{5,}\}\{\d{5,}\}"), "too large a number"),
    # The parser takes letters to have no common divisor, and an integral to have no constant.
    (
        re.compile(
            r"\\(?:gcd|lcm)\s*(?:\{[^{}]*\}|\([^()]*[a-zA-Z][^()]*\))|\\int(?!\s*(?:_|\\limits))"
        ),
        "a divisor of letters, or an integral up to a constant",
    ),
]
_PREPARED = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"(\d+(?:\.\d+)?|\\?[a-zA-Z]+)\s*\^\\circ", r"(\1\\cdot\\frac{\\pi}{180})"),
        (r"%", r"\\cdot\\frac{1}{100}"),
        (r"\\bmod", r"\\mod"),
        (
            r"(\\?[a-zA-Z]+)(?:_(\w)|_\{(\w+)\})?\s*\^\s?\{?\s?(?:\*|\\dagger)\s?\}?",
            r"\\bar{\1\2\3}",
        ),
        (r"(?<![a-zA-Z\\])([eEI])(?=_)", r"\\mathrm{\1}"),  # for the parser these are constants
        (
            r"(?<![a-zA-Z\\{])(?:np\.|math\.)?((?:arc)?(?:sin|cos|tan)|(?:sin|cos|tan)h|cot|sec|csc"
            r"|ln|log|exp)(?![a-zA-Z])",
            r"\\\1 ",
        ),
        # 1/2x is x/2
        (r"(?<![\d.}/^_])(\d+)\s*/\s*(\d+)(?=\s?[a-zA-Z(]|\\(?!cdot|times))", r"\\frac{\1}{\2}"),
        (r"(?<=\d)\.(?!\d)", ""),
        # The parser takes `2(1/2)` for the mixed number.
        (r"(?<![\w\\.{])(\d+(?:\.\d+)?)\s*(?=\()", r"\1\\cdot "),
        (  # Exactly: the parser would read 0.1 as a binary fraction beside it.
            r"(?<![\d^_.])(\d*)\.(\d+)(?![\d.])",
            lambda m: rf"\frac{{{int(m[1] + m[2])}}}{{{10 ** len(m[2])}}}",
        ),
    ]
]


class UnparsableError(ValueError):
    """The answer is no expression that the parser understands."""


def _prepared(text: str) -> str:
    """A cleaned expression as both readers take it.

    Raises:
        UnparsableError: It is none, or none that either reads as it is meant.
    """
    for pattern, why in _REFUSED:
        if pattern.search(text):
            raise UnparsableError(why)
    text = join_thousands(text)
    for pattern, replacement in _PREPARED:
        text = pattern.sub(replacement, text)
    return text


@functools.lru_cache(maxsize=1024)  # a gold is parsed for each answer to it
def parse(text: str) -> Any:
    """A cleaned expression as a sympy object, unevaluated as far as the parser leaves it.

    Raises:
        UnparsableError: It is none.
    """
    text = _prepared(text)
    try:
        parsed = latex2sympy(text, normalization_config=_NORMALIZE, conversion_config=_CONVERT)
    except MemoryError:
        raise
    except Exception as error:  # whatever the parser throws means the same
        raise UnparsableError(str(error)[:200]) from None
    if not isinstance(parsed, (sympy.Basic, sympy.MatrixBase)):
        raise UnparsableError(f"parsed into a {type(parsed).__name__}")
    return parsed


def atoms_equal(answer: Form, gold: Form) -> bool | None:
    """Whether two expressions are equal; the same verdict on every call and every machine.

    Raises:
        UnparsableError: The answer cannot be parsed.
    """
    alike = atoms_alike(answer, gold)
    return _texts_equal(answer.text, gold.text) if alike is None else alike


def _texts_equal(answer: str, gold: str) -> bool:
    # Primes: the parser drops them, and `x'` would be `x`.
    if sorted(_PRIMES.findall(answer)) != sorted(_PRIMES.findall(gold)):
        return False
    given, wanted = _RELATION.fullmatch(answer), _RELATION.fullmatch(gold)
    with contextlib.suppress(UnknownFormError, RecursionError):
        if given and wanted:
            sides = [tuple(map(_prepared, both.groups()[1:])) for both in (given, wanted)]
            factor = common_factor(*sides)
            if factor is None or given.group(1) in ("=", "\\ne"):
                return factor is not None
            return factor.imag == 0 and (factor.real < 0) == (given.group(1) != wanted.group(1))
        verdict = equal_values(_prepared(answer), _prepared(gold))
        if verdict is not None:
            return verdict
    seed(0)
    left = parse(answer)
    try:
        right = parse(gold)
    except UnparsableError:
        return False  # a gold that is no expression is met by its own text only
    return bool(verify(right, left, timeout_seconds=None, float_rounding=6))


def grade(answer: str, golds: list[str]) -> str:
    """Reason for the verdict on an answer against golds of which any is accepted (a worker's job).

    Returns "correct", "wrong" or "unparsable".
    """
    reason = "wrong"
    for gold in golds:
        try:
            if decide(answer, gold, atoms_equal):
                return "correct"
        except (UnparsableError, TooLargeError):
            reason = "unparsable"
    return reason


def read(gold: str) -> str:
    """Why a gold cannot be read, or "" (a worker's job): every expression in it must parse, and be
    found equal to itself. Numbers and words are."""
    problems = []

    def note(atom: Form, _: Form) -> bool:
        plain = atom.number is not None or "\\infty" in atom.text or ":" in atom.text
        if not plain and read_based(atom.text) is None:
            try:
                same = _texts_equal(atom.text, atom.text)
                said = "" if same else "not equal to itself"
            except (UnparsableError, TooLargeError) as error:
                said = str(error).partition("\n")[0]  # the parser draws an arrow below
            problems.extend([f"{atom.text}: {said}"] if said else [])
        return True

    for form in accepted_forms(gold):
        equal(form, form, note)
    return "; ".join(problems)
