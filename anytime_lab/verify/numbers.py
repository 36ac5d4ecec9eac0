"""Read plain numbers and decide their equality exactly, without sympy."""

import re
from dataclasses import dataclass
from fractions import Fraction

DECIMAL_TOLERANCE = Fraction(5, 10**7)  # half a unit in the sixth place

_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.?\d*|\.\d+)"
_PLAIN = re.compile(rf"({_UNSIGNED})")
_FRACTION = re.compile(rf"\\frac\{{([-+]?{_UNSIGNED})\}}\{{([-+]?{_UNSIGNED})\}}")
_SLASH = re.compile(rf"\(?([-+]?{_UNSIGNED})\)?\s*/\s*\(?({_UNSIGNED})\)?")
_MIXED = re.compile(r"(\d+)\s*(?:\\frac\{(\d+)\}\{(\d+)\}|(?<=\s)(\d+)\s*/\s*(\d+))")
_SCIENTIFIC = re.compile(
    rf"(?:({_UNSIGNED})\s*(?:\\times|\\cdot|\*|x)\s*)?10\s*\^\s*(?:\{{\s*([-+]?\d{{1,3}})\s*\}}|(\d))"
)
_REMAINDER = re.compile(r"(\d{1,300})\s*(?:\\b?mod|mod)\s*(\d{1,300})")  # 7 \bmod 3
_REPEATING = re.compile(
    r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s?(?:\{(\d+)\}|(\d))"  # 0.1\overline{6}
    r"|(\d{0,15})\.(\d{0,15}?)(?:(\d)\7{2,40}|(\d{2,12}?)\8{1,20})\.\.\."  # 0.1666...
)
_COLONS = re.compile(r"[0-9]{1,9}(?: ?: ?[0-9]{1,9})+")
_BASED = re.compile(r"([0-9a-zA-Z]+)_(?:\{(\d{1,2})\}|\{?\\text\{([a-z]+)\}\}?|(\d))")
_BASES = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "ten": 10,
}


@dataclass(frozen=True)
class Number:
    """A number as written.

    value: exact, the percent sign not applied. decimal: has a decimal point, so it may be rounded.
    percent: a percent sign follows.
    """

    value: Fraction
    decimal: bool = False
    percent: bool = False


def read_number(text: str) -> Number | None:
    """Read a whole cleaned text as one number; None where it is anything else.

    Integers, decimals, thousands separators, fractions, mixed numbers, scientific notation,
    percent; one sign in front. `\\frac12` and Unicode are `latex.clean`'s business.
    """
    text = text.strip()
    percent = text.endswith("%")
    if percent:
        text = text[:-1].rstrip()
    while text.startswith("(") and text.endswith(")") and not {"(", ","} & set(text[1:]):
        text = text[1:-1].strip()
    if text.startswith("{") and text.endswith("}") and "{" not in text[1:]:
        text = text[1:-1].strip()
    negative = text.startswith("-")
    if text[:1] in ("-", "+"):
        text = text[1:].lstrip()
    magnitude = _read_magnitude(text)
    if magnitude is None:
        return None
    value, decimal = magnitude
    return Number(-value if negative else value, decimal, percent)


def _read_magnitude(text: str) -> tuple[Fraction, bool] | None:
    """(value, has a decimal point) of an unsigned number."""
    if match := _PLAIN.fullmatch(text):
        return _fraction(match.group(1)), "." in text
    if match := _REPEATING.fullmatch(text):
        first = match.group(5) is None
        whole, fixed = match.group(1, 2) if first else match.group(5, 6)
        block = (match.group(3) or match.group(4)) if first else (match.group(7) or match.group(8))
        repeated = Fraction(int(block), 10 ** len(block) - 1)
        return (int(f"0{whole}{fixed}") + repeated) / 10 ** len(fixed), False
    decimal = "." in text
    if match := _FRACTION.fullmatch(text) or _SLASH.fullmatch(text):
        below = _fraction(match.group(2))
        return (_fraction(match.group(1)) / below, decimal) if below else None
    if match := _REMAINDER.fullmatch(text):
        left, by = int(match.group(1)), int(match.group(2))
        return (Fraction(left % by), False) if by else None
    if match := _MIXED.fullmatch(text):
        whole, a, b, c, d = match.groups()
        above, below = int(a or c), int(b or d)
        return (int(whole) + Fraction(above, below), False) if below else None
    if match := _SCIENTIFIC.fullmatch(text):
        factor = _fraction(match.group(1)) if match.group(1) else Fraction(1)
        return factor * Fraction(10) ** int(match.group(2) or match.group(3)), decimal
    return None


def _fraction(text: str) -> Fraction:
    return Fraction(text.replace(",", "").rstrip("."))


def close(a: Fraction, b: Fraction, decimal: bool) -> bool:
    """Equality of two values: exact, or where one is a rounded decimal, to six places.

    Below 1 the places are counted from the first digit that is not 0, so that 1e-7 is not 2e-7.
    """
    if a == b:
        return True
    if not decimal:
        return False
    size = min(abs(a), abs(b))
    if size == 0:
        return False
    scale = Fraction(1)
    while scale > size:
        scale /= 10
    return abs(a - b) <= DECIMAL_TOLERANCE * min(scale * 10, 1)


def numbers_equal(answer: Number, gold: Number) -> bool:
    """Whether an answer states the gold's value.

    Where one side alone has a percent sign, the value may be meant (50% is 0.5) or the sign left
    out (50 for 50%); a bare gold below 1 is taken at its value, so that 0.5% is not 0.5.
    """
    decimal = answer.decimal or gold.decimal
    if answer.percent == gold.percent:
        return close(answer.value, gold.value, decimal)
    if gold.percent:
        return close(answer.value, gold.value, decimal) or close(
            answer.value, gold.value / 100, decimal
        )
    if abs(gold.value) >= 1 and close(answer.value, gold.value, decimal):
        return True
    return close(answer.value / 100, gold.value, decimal)


def read_based(text: str) -> tuple[str, int | None] | None:
    """(digits, base) of a numeral such as `2021_3` or `101_{two}`; base None where not written."""
    text = text.strip().replace(" ", "")
    if match := _BASED.fullmatch(text):
        digits, *bases = match.groups()
        written = next(base for base in bases if base)
        base = int(written) if written.isdigit() else _BASES.get(written)
        return (digits.upper(), base) if base else None
    return (text.upper(), None) if text.isalnum() and text[:1].isdigit() else None


def colons_equal(answer: str, gold: str) -> bool | None:
    """Two clock times or ratios; None where either is none. 5:00 is 05:00 and 5, 2:4 is 1:2."""
    hours = [text.removesuffix(":00") for text in (answer, gold)]
    if hours != [answer, gold] and all(hour.isdecimal() for hour in hours):
        return int(hours[0]) == int(hours[1])
    if not _COLONS.fullmatch(answer) or not _COLONS.fullmatch(gold):
        return None
    given, wanted = ([int(part) for part in text.split(":")] for text in (answer, gold))
    clock = any(
        all(len(part.strip()) == 2 for part in text.split(":")[1:]) for text in (answer, gold)
    )
    if clock or given[0] == 0 or wanted[0] == 0 or len(given) != len(wanted):
        return given == wanted
    return all(a * wanted[0] == b * given[0] for a, b in zip(given, wanted, strict=True))
