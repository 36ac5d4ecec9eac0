"""Decide two expressions with sympy, by way of math-verify. Only worker processes import this.

Expressions are evaluated to many digits at fixed points, which settles nearly all of them either
way and is faster than simplifying; what cannot be evaluated goes to `math_verify.verify`.
"""

import functools
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from fractions import Fraction
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import (
    ConversionConfig,
    NormalizationConfig,
    latex2sympy,
)
from math_verify import verify
from sympy.core.function import AppliedUndef
from sympy.core.random import seed

from anytime_lab.verify.equal import atoms_alike, decide, expressions
from anytime_lab.verify.forms import Atom, without_separators

DIGITS = 60  # beyond those of the longest number met: 2^{2019} - 1 is not 2^{2019}
AGREEING = 45  # of them make two values equal that are no fractions
POINTS = 4  # at which expressions in letters are compared
ENOUGH = 2  # of them must be defined
_STRETCHED = (sympy.Rational(1, 5), sympy.Rational(1, 9), 5, 25)

_NORMALIZE = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none"
)
# Capitals are other names: `r` is not `R`.
_CONVERT = ConversionConfig(lowercase_symbols=False)
_DEGREES = re.compile(r"(\d+(?:\.\d+)?|\\?[a-zA-Z]+)\s*\^\\circ")
_RELATION = re.compile(r"\\relation(\\le|\\ge|\\ne|[<>=])(.*)\\to (.*)", re.S)
_BARE_FUNCTION = re.compile(
    r"(?<![a-zA-Z\\{])(?:np\.|math\.)?((?:arc)?(?:sin|cos|tan)|(?:sin|cos|tan)h|cot|sec|csc|ln|log|exp)"
    r"(?![a-zA-Z])"
)
# The parser takes `E_1`, `e_1` and `I_1` for the constants.
_NUMBERED_CONSTANT = re.compile(r"(?<![a-zA-Z\\])([eEI])(?=_)")
_CONJUGATE = re.compile(r"(\\?[a-zA-Z]+)(?:_(\w)|_\{(\w+)\})?\s*\^\s?\{?\s?(?:\*|\\dagger)\s?\}?")
# The parser takes `2(1/2)` for the mixed number.
_TIMES_BRACKET = re.compile(r"(?<![\w\\.{])(\d+(?:\.\d+)?)\s*(?=\()")
# `1 2` is neither 12 nor 2.
_TWO_NUMBERS = re.compile(r"(?<![\^_\d.])\d+ +\d")
_TALL_BINOMIAL = re.compile(r"\\binom\{\d{5,}\}\{\d{5,}\}")  # the parser multiplies it out
# The parser takes letters to have no common divisor, and an integral to have no constant.
_UNSETTLED = re.compile(
    r"\\(?:gcd|lcm)\s*(?:\{[^{}]*\}|\([^()]*[a-zA-Z][^()]*\))|\\int(?!\s*(?:_|\\limits))"
)
_SLASH = re.compile(r"(?<![\d.}/^_])(\d+)\s*/\s*(\d+)(?=\s?[a-zA-Z(]|\\(?!cdot|times))")
_DECIMAL = re.compile(r"(?<![\d^_.])(\d*)\.(\d+)(?![\d.])")
_POINT_AT_END = re.compile(r"(?<=\d)\.(?!\d)")
_PRIMES = re.compile(r"(?:[a-zA-Z0-9]|\}|\))'+")


class UnparsableError(ValueError):
    """The answer is no expression that the parser understands."""


@functools.lru_cache(maxsize=1024)  # a gold is parsed for each answer to it
def parse(text: str) -> Any:
    """A cleaned expression as a sympy object, unevaluated as far as the parser leaves it.

    Raises:
        UnparsableError: It is none.
    """
    if _TWO_NUMBERS.search(text):
        raise UnparsableError("two numbers side by side")
    if _TALL_BINOMIAL.search(text):
        raise UnparsableError("too large a number")
    if _UNSETTLED.search(text):
        raise UnparsableError("a divisor of letters, or an integral up to a constant")
    text = _DEGREES.sub(r"(\1\\cdot\\frac{\\pi}{180})", text)
    text = without_separators(text.replace("%", r"\cdot\frac{1}{100}").replace(r"\bmod", r"\mod"))
    text = _CONJUGATE.sub(r"\\bar{\1\2\3}", text)
    text = _BARE_FUNCTION.sub(r"\\\1 ", _NUMBERED_CONSTANT.sub(r"\\mathrm{\1}", text))
    text = _SLASH.sub(r"\\frac{\1}{\2}", text)  # 1/2x is x/2
    text = _TIMES_BRACKET.sub(r"\1\\cdot ", _POINT_AT_END.sub("", text))
    # Exactly: the parser would read 0.1 as a binary fraction beside it.
    text = _DECIMAL.sub(lambda m: rf"\frac{{{int(m[1] + m[2])}}}{{{10 ** len(m[2])}}}", text)
    try:
        parsed = latex2sympy(text, normalization_config=_NORMALIZE, conversion_config=_CONVERT)
    except MemoryError:
        raise
    except Exception as error:  # whatever the parser throws means the same
        raise UnparsableError(str(error)[:200]) from None
    if not isinstance(parsed, (sympy.Basic, sympy.MatrixBase)):
        raise UnparsableError(f"parsed into a {type(parsed).__name__}")
    return parsed


def atoms_equal(answer: Atom, gold: Atom) -> bool | None:
    """Whether two expressions are equal; the same verdict on every call and every machine.

    Raises:
        UnparsableError: The answer cannot be parsed.
    """
    alike = atoms_alike(answer, gold)
    if alike is not None:
        return alike
    seed(0)
    given, wanted = _RELATION.fullmatch(answer.text), _RELATION.fullmatch(gold.text)
    if given and wanted:
        return _relations_equal(given, wanted)
    if sorted(_PRIMES.findall(answer.text)) != sorted(_PRIMES.findall(gold.text)):
        return False  # the parser drops them: `x'` would be `x`
    left = parse(answer.text)
    try:
        right = parse(gold.text)
    except UnparsableError:
        return False  # a gold that is no expression is met by its own text only
    verdict = _evaluated_equal(left, right)
    return _verified(right, left) if verdict is None else verdict


def _verified(gold: Any, answer: Any) -> bool:
    return bool(verify(gold, answer, timeout_seconds=None, float_rounding=6))


def _evaluated_equal(left: Any, right: Any) -> bool | None:
    """Equality by value, at several points where there are letters; None if undefined there."""
    if not isinstance(left, sympy.Expr) or not isinstance(right, sympy.Expr):
        return None
    sides = [_named_functions(side) for side in (left, right)]
    whole = {name for side in sides for name in _whole_numbers(side)}
    positive, real = set(), []
    if not any(side.has(sympy.Abs) for side in sides):
        # `ln(a/b)` is `ln a - ln b` where both are above 0; but `ln|a|` is not `ln a`.
        logarithms = {log for side in sides for log in side.atoms(sympy.log)}
        positive = {name for log in logarithms for name in log.args[0].free_symbols}
        # So with roots: `\\sqrt{ab}` is `\\sqrt{a}\\sqrt{b}` where those are real, if anywhere.
        real = [part for side in sides for part in _not_below_zero(side)]
    for domain in (real, []) if real else ([],):
        compared = 0
        for point, values in _values_at_points(*sides, whole, positive):
            if any(_is_below_zero(part, point) for part in domain):
                continue
            if not _close(*values):
                return False
            compared += 1
            if compared == POINTS or not point:
                return True
        if compared >= ENOUGH:
            return True
    return None


def _relations_equal(given: re.Match[str], wanted: re.Match[str]) -> bool | None:
    """Whether `a - b` and `c - d` differ by a constant factor only, of the right sign."""
    sign, turned = given.group(1), given.group(1) != wanted.group(1)
    if {*_PRIMES.findall(given.group())} != {*_PRIMES.findall(wanted.group())}:
        return False
    left = parse(given.group(2)) - parse(given.group(3))
    try:
        right = parse(wanted.group(2)) - parse(wanted.group(3))
    except UnparsableError:
        return False
    ratios, apart = [], Fraction(0)
    for _, (a, b, rounding) in _values_at_points(_named_functions(left), _named_functions(right)):
        if (a == 0) != (b == 0):
            return False
        if a != 0:
            ratios.append(a / b)
            apart = max(apart, rounding)
        if len(ratios) == POINTS:
            break
    if len(ratios) < ENOUGH:
        return False
    if not all(_close(ratio / ratios[0], sympy.Integer(1), apart) for ratio in ratios[1:]):
        return False
    real = sympy.im(ratios[0]) == 0
    return sign in ("=", "\\ne") or bool(real and (ratios[0] < 0) == turned)


def _named_functions(expression: sympy.Expr) -> sympy.Expr:
    """Calls of unknown functions, such as `I(0)`, and `dy/dx` as names of their own."""
    calls = expression.atoms(AppliedUndef)
    calls |= {d for d in expression.atoms(sympy.Derivative) if d.expr.is_Symbol}
    return expression.xreplace({call: sympy.Symbol(f"call {call}") for call in calls})


def _values_at_points(
    left: sympy.Expr,
    right: sympy.Expr,
    whole: Collection[sympy.Symbol] = (),
    positive: Collection[sympy.Symbol] = (),
) -> Iterator[tuple[dict, tuple[sympy.Expr, sympy.Expr, Fraction]]]:
    """(point, values there) at fixed rational points, none of them special, where both are defined.

    Points are of both signs, then small and large; without names there is one, without values.

    whole: names that stand for whole numbers; odd and even ones in turn.
    positive: names that stand for numbers above 0.
    """
    constants = {sympy.Symbol("i"), sympy.Symbol("e")}
    names = sorted({*left.free_symbols, *right.free_symbols} - constants, key=str)
    exponents = _exponents(left) | _exponents(right)
    for number in range(2 * POINTS if names else 1):
        point = {}
        for index, name in enumerate(names):
            size = sympy.Rational(1009 + 377 * index + 613 * number, 701 + 89 * number)
            if number >= POINTS:
                size *= _STRETCHED[number - POINTS]
            if name in exponents:  # with a denominator longer than 7 a power takes for ever
                sevenths = round(7 * size)
                size = sympy.Rational(sevenths + (sevenths % 7 == 0), 7)
            below = number < POINTS and name not in positive and (number >> (index % 2)) & 1
            point[name] = -size if below else size
            if name in whole:
                point[name] = sympy.Integer(3 + 5 * number + 2 * index)
        values = _values(left, right, point)
        if values is not None:
            yield point, values


def _exponents(expression: sympy.Expr) -> set[sympy.Symbol]:
    return {x for power in expression.atoms(sympy.Pow) for x in power.exp.free_symbols}


def _whole_numbers(expression: sympy.Expr) -> Iterator[sympy.Symbol]:
    """Names that only whole numbers make sense for: in powers of -1, as ends of sums."""
    for power in expression.atoms(sympy.Pow):
        if power.base == -1:
            yield from power.exp.free_symbols
    for added in expression.atoms(sympy.Sum, sympy.Product):
        yield from (name for limit in added.limits for name in sympy.Tuple(*limit[1:]).free_symbols)


def _not_below_zero(expression: sympy.Expr) -> Iterator[sympy.Expr]:
    """What is under even roots and exponents in letters and in logarithms: real only for such."""
    for power in expression.atoms(sympy.Pow):
        even_root = power.exp.is_Rational and power.exp.q % 2 == 0
        if power.base.free_symbols and (even_root or power.exp.free_symbols):
            yield power.base
    yield from (log.args[0] for log in expression.atoms(sympy.log) if log.free_symbols)


def _is_below_zero(expression: sympy.Expr, point: dict) -> bool:
    value = _value(expression, point, DIGITS)
    return value is not None and sympy.im(value) == 0 and bool(value < 0)


def _values(
    left: sympy.Expr, right: sympy.Expr, point: dict
) -> tuple[sympy.Expr, sympy.Expr, Fraction] | None:
    """(values of both, how far apart equal ones may be by rounding), or None where undefined.

    Raises:
        UnparsableError: A number too long to be written out.
    """
    longest = max(longest_number(side, point) for side in (left, right))
    if longest > MAX_DIGITS:
        raise UnparsableError("too large a number")
    a, b = (_value(side, point, DIGITS + 2 * int(longest)) for side in (left, right))
    if a is None or b is None:
        return None
    rounded = not (a.is_Rational and b.is_Rational)
    return a, b, Fraction(1, 10 ** (AGREEING + int(longest))) if rounded else Fraction(0)


def _value(expression: sympy.Expr, point: dict, digits: int) -> sympy.Expr | None:
    """A finite complex value, a fraction exactly and all else to so many digits, or None."""
    values = {**point, sympy.Symbol("i"): sympy.I, sympy.Symbol("e"): sympy.E}
    try:
        value = _real_roots(expression.xreplace(values).doit())
        if value.is_Rational:
            return value
        value = value.evalf(digits, chop=False)
    except MemoryError:
        raise
    except Exception:
        return None
    if not value.is_number or not value.is_finite or value.has(sympy.nan, sympy.zoo, sympy.oo):
        return None
    return value if (sympy.re(value).is_Number and sympy.im(value).is_Number) else None


def _real_roots(value: sympy.Expr) -> sympy.Expr:
    """With -2 for the cube root of -8, and so for all odd roots of numbers below 0."""
    odd = {
        power: (-1) ** power.exp.p * (-power.base) ** power.exp
        for power in value.atoms(sympy.Pow)
        if power.exp.is_Rational and power.exp.q % 2 and power.exp.q > 1 and power.base.is_negative
    }
    return value.xreplace(odd) if odd else value


def _close(a: sympy.Expr, b: sympy.Expr, apart: Fraction) -> bool:
    """Equality of two values, as far as rounding may part them."""
    parts = [tuple(_exact(part(x)) for x in (a, b)) for part in (sympy.re, sympy.im)]
    return all(abs(x - y) <= apart for x, y in parts)


def _exact(number: sympy.Expr) -> Fraction:
    rational = sympy.Rational(number)
    return Fraction(int(rational.p), int(rational.q))


def grade(answer: str, golds: list[str]) -> str:
    """Reason for the verdict on an answer against golds of which any is accepted (a worker's job).

    Returns "correct", "wrong" or "unparsable".
    """
    reason = "wrong"
    for gold in golds:
        try:
            if decide(answer, gold, atoms_equal):
                return "correct"
        except UnparsableError:
            reason = "unparsable"
    return reason


def read(gold: str) -> str:
    """Why a gold cannot be read, or "" (a worker's job): every expression in it must parse, and
    sympy must find it equal to itself."""
    problems = []
    for text in expressions(gold):
        try:
            parsed = parse(text)
        except UnparsableError as error:
            said = str(error).partition("\n")[0]  # the parser draws an arrow below
            problems.append(f"{text}: {said}")
            continue
        if not _verified(parsed, parsed):
            problems.append(f"{text}: not equal to itself")
    return "; ".join(problems)


MAX_DIGITS = 50_000  # of a number that a worker writes out; golds of MATH go up to 1500
_TALLEST = 300.0  # the exponent up to which a float is a bound; beyond it all is one


def longest_number(expression: sympy.Basic, point: Mapping[sympy.Symbol, sympy.Rational]) -> float:
    """Decimal digits of the longest number met on the way to the value at a point.

    A bound, near or above the truth, for numbers, powers, exponentials, factorials, binomials,
    sums and products; infinite where it is beyond all writing out. What integrals, limits and
    derivatives need is not seen from their parts: they count as nothing.
    """
    longest = 0.0

    def bound(node: sympy.Basic, names: Mapping[sympy.Symbol, float]) -> tuple[float, float]:
        """(log10 |value|, digits of the fraction that is the value) of a node."""
        nonlocal longest
        size, digits = _bound(node, names, bound)
        longest = max(longest, digits)
        return size, digits

    bound(expression, {name: _log(value) for name, value in point.items()})
    return longest


def _bound(
    node: sympy.Basic, names: Mapping[sympy.Symbol, float], bound: Callable[..., Any]
) -> tuple[float, float]:
    if isinstance(node, sympy.Rational):
        return _log(node), 0.302 * max(node.p.bit_length(), node.q.bit_length())
    if isinstance(node, sympy.Float):
        return _log(node), abs(_log(node))
    if isinstance(node, (sympy.Derivative, sympy.Limit, sympy.Integral)):
        return 0.0, 0.0
    if isinstance(node, (sympy.Sum, sympy.Product)):
        names, terms = {**names}, 0.0
        for name, *ends in node.limits:
            names[name] = max((bound(end, names)[0] for end in ends), default=1.0)
            terms += names[name]
        size, digits = bound(node.function, names)
        if isinstance(node, sympy.Sum):
            return size + terms, digits
        return size * _power(terms), digits * _power(terms)
    parts = [bound(argument, names) for argument in node.args]
    if not parts:
        return names.get(node, 0.6), 4.0  # a name at a point, or a constant such as π
    sizes, digits = [size for size, _ in parts], sum(digits for _, digits in parts)
    if isinstance(node, sympy.Pow) and node.base in (0, 1, -1):
        return 0.0, 1.0
    if isinstance(node, (sympy.Pow, sympy.exp)):
        base, times = abs(sizes[0] if len(sizes) == 2 else 0.44), _power(sizes[-1])
        whole = isinstance(node.args[-1], sympy.Integer) or not node.args[-1].free_symbols
        written = parts[0][1] if whole and len(sizes) == 2 else base
        return base * times, max(base, written) * times
    if isinstance(node, (sympy.factorial, sympy.gamma, sympy.factorial2)):
        size = math.lgamma(min(_power(sizes[0]), 1e15) + 1.0) / math.log(10)
        return size, size
    if isinstance(node, sympy.binomial):
        size = max(max(sizes), 1.0) * _power(min(sizes))
        return size, size
    return (sum(sizes) if node.is_Mul else max(sizes) + math.log10(len(sizes))), digits


def _log(number: sympy.Number) -> float:
    """log10 |number|, -infinity's place taken by 0."""
    if isinstance(number, sympy.Rational):
        p, q = abs(int(number.p)), int(number.q)
        return (math.log10(p) - math.log10(q)) if p else 0.0
    return float(sympy.log(abs(number), 10)) if number.is_finite and number else 0.0


def _power(size: float) -> float:
    """10 ** size, infinite beyond what a float holds."""
    return 10.0**size if size < _TALLEST else math.inf
