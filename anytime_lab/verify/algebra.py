"""Decide two expressions with sympy, by way of math-verify. Only worker processes import this.

Values at fixed points settle nearly all of them either way, and faster than a parse; what is of
another form goes to `math_verify.verify`.
"""

import contextlib
import functools
import re
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import (
    ConversionConfig,
    NormalizationConfig,
    latex2sympy,
)
from math_verify import verify
from sympy.core.random import seed

from anytime_lab.verify.equal import accepted_forms, atoms_alike, decide, equal
from anytime_lab.verify.forms import Atom
from anytime_lab.verify.quantities import read_based
from anytime_lab.verify.values import (
    TooLargeError,
    UnknownFormError,
    common_factor,
    equal_values,
)

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
        (r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d)", lambda m: m.group().replace(",", "")),
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


def atoms_equal(answer: Atom, gold: Atom) -> bool | None:
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

    def note(atom: Atom, _: Atom) -> bool:
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
