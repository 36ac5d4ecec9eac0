"""Numbers and units: read them without sympy, and decide exactly whether two are equal.

A number is the value that it writes, rounded ones too: 0.33 is not 1/3. Words after a number are a
unit where all of them are known. A unit in the gold alone is commentary, and so is a known one in
the answer alone; two units must measure the same thing, and then 5 m is 500 cm, not 5 cm.
"""

import contextlib
import re
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

_IN_BRACKETS, _IN_BRACES = re.compile(r"^\(([^(,]*)\)$"), re.compile(r"^\{([^{]*)\}$")
_COLONS = re.compile(r"[0-9]{1,9}(?: ?: ?[0-9]{1,9})+")
_CLOCK = re.compile(r"[0-9]+(?: ?: ?[0-9]{2})+")
_BASED = re.compile(r"([0-9a-zA-Z]+)_(?:\{(\d{1,2})\}|\{?\\text\{([a-z]+)\}\}?|(\d))")
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "ten": 10}


@dataclass(frozen=True)
class Number:
    """A number as written.

    value: exact, the percent sign not applied. percent: a percent sign follows.
    """

    value: Fraction
    percent: bool = False


_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d)")


def join_thousands(text: str) -> str:
    """`1,000` as `1000`."""
    return _THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)


def read_number(text: str) -> Number | None:
    """Read a whole cleaned text as one number; None where it is anything else.

    Integers, decimals, thousands separators, fractions, mixed numbers, scientific notation,
    percent; one sign in front. `\\frac12` and Unicode are `latex.clean`'s business.
    """
    text = text.strip()
    percent = text.endswith("%")
    text = text.removesuffix("%").rstrip()
    if text.startswith(("(", "{")):
        text = _IN_BRACES.sub(r"\1", _IN_BRACKETS.sub(r"\1", text).strip()).strip()
    negative = text.startswith("-")
    text = join_thousands(text[1:].lstrip() if text[:1] in ("-", "+") else text)
    for pattern, value in _MAGNITUDES:
        if match := pattern.fullmatch(text):
            with contextlib.suppress(ZeroDivisionError):
                return Number(-value(match) if negative else value(match), percent)
    return None


def _repeating(decimal: re.Match[str]) -> Fraction:
    whole, fixed, block, other = decimal.groups()
    repeated = Fraction(int(block or other), 10 ** len(block or other) - 1)
    return (int(f"0{whole}{fixed}") + repeated) / 10 ** len(fixed)


def _ratio(match: re.Match[str]) -> Fraction:
    return Fraction(match[1]) / Fraction(match[2])


_UNSIGNED = r"(?:\d+\.?\d*|\.\d+)"
_MAGNITUDES: list[tuple[re.Pattern[str], Callable[[re.Match[str]], Fraction]]] = [
    (re.compile(pattern), value)
    for pattern, value in [
        (_UNSIGNED, lambda m: Fraction(m[0])),
        (r"0[xX][0-9a-fA-F]{1,12}|0[bB][01]{1,48}", lambda m: Fraction(int(m[0], 0))),
        (r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s?(?:\{(\d+)\}|(\d))", _repeating),
        # 0.1666...
        (r"(\d{0,15})\.(\d{0,15}?)(?:(\d)\3{2,40}|(\d{2,12}?)\4{1,20})\.\.\.", _repeating),
        (rf"\\frac\{{([-+]?{_UNSIGNED})\}}\{{([-+]?{_UNSIGNED})\}}", _ratio),
        (rf"\(?([-+]?{_UNSIGNED})\)?\s*/\s*\(?({_UNSIGNED})\)?", _ratio),
        # 7 \bmod 3
        (r"(\d{1,300})\s*\\?b?mod\s*(\d{1,300})", lambda m: Fraction(int(m[1]) % int(m[2]))),
        (
            r"(\d+)\s*(?:\\frac\{(\d+)\}\{(\d+)\}|(?<=\s)(\d+)\s*/\s*(\d+))",  # mixed
            lambda m: int(m[1]) + Fraction(int(m[2] or m[4]), int(m[3] or m[5])),
        ),
        (
            rf"(?:({_UNSIGNED})\s*(?:\\times|\\cdot|\*|x)\s*)?10\s*\^\s*"
            r"(?:\{\s*([-+]?\d{1,3})\s*\}|(\d))",
            lambda m: Fraction(m[1] or "1") * Fraction(10) ** int(m[2] or m[3]),
        ),
    ]
]


def numbers_equal(answer: Number, gold: Number) -> bool:
    """Whether an answer states the gold's value.

    Where one side alone has a percent sign, the value may be meant (50% is 0.5) or the sign left
    out (50 for 50%); a bare gold below 1 is taken at its value, so that 0.5% is not 0.5.
    """
    if answer.percent == gold.percent:
        return answer.value == gold.value
    if gold.percent:
        return answer.value in (gold.value, gold.value / 100)
    return answer.value / 100 == gold.value or abs(gold.value) >= 1 and answer.value == gold.value


def read_based(text: str) -> tuple[str, int | None] | None:
    """(digits, base) of a numeral such as `2021_3` or `101_{two}`; base None where not written."""
    text = text.strip().replace(" ", "")
    if match := _BASED.fullmatch(text):
        digits, *bases = match.groups()
        written = next(base for base in bases if base)
        base = int(written) if written.isdigit() else _BASES.get(written)
        if base and not all(int(digit, 36) < base for digit in digits):
            return "", base  # 5_2 is no number
        return (digits.upper(), base) if base else None
    return (text.upper(), None) if text.isalnum() and text[:1].isdigit() else None


def colons_equal(answer: str, gold: str) -> bool | None:
    """Two clock times or ratios; None where either is none. 5:00 is 05:00 and 5, 2:4 is 1:2."""
    hours = [text.removesuffix(":00") for text in (answer, gold)]
    if hours != [answer, gold] and all(hour.isdecimal() for hour in hours):
        return int(hours[0]) == int(hours[1])
    for ratio, number in ((answer, gold), (gold, answer)):
        if _COLONS.fullmatch(ratio) and ratio.endswith(":1") and number.isdecimal():
            return False  # 5:1 is not 5, as 2:3 is 2/3
    if not _COLONS.fullmatch(answer) or not _COLONS.fullmatch(gold):
        return None
    given, wanted = ([int(part) for part in text.split(":")] for text in (answer, gold))
    clock = _CLOCK.fullmatch(answer) or _CLOCK.fullmatch(gold)
    if clock or given[0] == 0 or wanted[0] == 0 or len(given) != len(wanted):
        return given == wanted
    return all(a * wanted[0] == b * given[0] for a, b in zip(given, wanted, strict=True))


_DATA = tomllib.loads(Path(__file__).with_name("units.toml").read_text(encoding="utf-8"))
DEGREES, RADIANS = (("angle", 1),), (("radian", 1),)
# Words after a number that make it another one, or no answer: `5 squared`, `5 \text{ or more}`.
_CHANGING = re.compile(
    r"^\s?(?:\\text\{)?\s?(?:squared|cubed|factorial|halves|thirds"
    r"|(?:four|fif|six|seven|eigh|nin|ten|hundred|thousand)ths)(?![a-zA-Z])"
    r"|(?<![a-zA-Z])(?:or|than|and a|not|wrong)(?![a-zA-Z])"
)
_FUNCTION = re.compile(r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)")
LETTER = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]")  # of a name or a word, not of a command
# Any other bare word after a number; not a function or letter whose backslash is missing.
_COMMENT = re.compile(
    r"(?!a?r?c?(?:sin|cos|tan|cot|sec|csc)|log|exp|sqrt|frac|theta|alpha|beta|gamma|delta|sigma"
    r"|lambda|omega|infty|times)[a-zA-Z]{4,20}"
)
_POWER = r"(?:\s?\^\s?(?:\{\s?-?\d\s?\}|-?\d))?"
_TOKEN = rf"(?:\\text\{{[^{{}}]*\}}|\\mu\s?[a-zA-Z]|[a-zA-Z]?\\Omega|\\AA|[a-zA-Z]{{1,20}}){_POWER}"
_TRAILING = re.compile(
    rf"(?:(?<=[\d\s}})\]%])|(?=\\text))"
    rf"({_TOKEN}(?:\s?(?:\\cdot|\*|/\s?\(?)?\s?{_TOKEN}){{0,5}}\)?)\.?$"  # J/(mol K)
)
_DEGREE = re.compile(r"\s*\^\\circ\s*(?:\\text\{\s*)?([CF]|)\s*\}?$")
_MONEY = re.compile(
    r"(?P<sign>[-+]?)\s*(?P<name>(?:US)?\s?\\?\$|[€£¥₹]"
    r"|(?:\\text\{\s*)?(?:Rs\.?|US(?=[\s}])|USD|EUR|GBP|INR|JPY)(?:\s*\}|(?![a-zA-Z])))\s*"
)
_MODULUS = re.compile(
    r"\s*(?:\(\s*(?:\\[bp]?mod|\\text\{\s*mod\s*\}|mod)\s*(?P<round>[^()]{1,20})\)"
    r"|\\pmod\s*(?P<bare>\{[^{}]{1,20}\}|\w))$"
)
_WORD = re.compile(  # and its power
    r"(\\mu\s?[a-zA-Z]+|[a-zA-Z]?\\Omega|\\AA|\\text|\\cdot|[a-zA-Z]+|/)"
    r"(?:[^a-zA-Z\\/^]*\^\s?\{?\s?(-?\d))?"
)


@dataclass(frozen=True)
class Unit:
    """What stands after a number, or a sign of money before it, as far as it is understood.

    parts: sorted (kind, power) of a unit that is understood wholly, else ().
    factor: how many base units one of it is.
    words: as folded, where it is no such unit: what is counted, or anything else.
    known: whether nothing in it may change the number.
    letters: whether it is written so that it may be a product (`m g`, not `\\text{mg}`, `meters`).
    """

    parts: tuple[tuple[str, int], ...] = ()
    factor: Fraction = Fraction(1)
    words: str = ""
    known: bool = True
    letters: bool = False


_NAMES = {
    name: Unit(tuple(sorted(_DATA["made_of"].get(kind, {kind: 1}).items())), Fraction(size))
    for kind, units in _DATA["kinds"].items()
    for names, size in units.items()
    for name in names.split()
}
_UNITS = {
    prefix + name: replace(
        _NAMES[name], factor=10 ** Fraction(_DATA["prefixes"][prefix]) * _NAMES[name].factor
    )
    for name, prefixes in _DATA["prefixed"].items()
    for prefix in prefixes
}
_UNITS |= {f"{name}s": unit for name, unit in _NAMES.items() if len(name) > 1} | _NAMES
_COUNTED = {  # in the singular
    word + end: word for end in ("es", "s", "") for word in _DATA["counted"]["words"].split()
}


def strip_unit(text: str) -> tuple[str, Unit | None]:
    """(text without its unit, the unit) of a cleaned answer; None where it has none.

    Letters are a unit only where they are `\\text{…}` after something, or where a known name
    follows a plain number, a single letter after a space: `2s` stays an expression.
    """
    money = _MONEY.match(text)
    if money is not None and money.end() < len(text):
        rest, unit = strip_unit(text[money.end() :])
        if unit is None or not unit.parts:
            unit = _NAMES[re.sub(r"\\text|[\s{}.]", "", money["name"])]
        return money["sign"] + rest, unit
    modulus = _MODULUS.search(text, max(0, len(text) - 60)) if "mod" in text else None
    if modulus is not None and modulus.start() > 0:
        number = re.sub(r"[\s{}]", "", modulus["round"] or modulus["bare"])
        return text[: modulus.start()], Unit(words=f"mod {number}", known=False)
    degree = _DEGREE.search(text)
    if degree is not None and degree.start() > 0 and not _FUNCTION.search(text):
        name = {"C": "celsius", "F": "fahrenheit", "": "degree"}[degree[1]]
        return text[: degree.start()], _NAMES[name]
    match = _TRAILING.search(text, max(0, len(text) - 160))  # units are short; so is the search
    if match is None:
        return text, None
    rest = text[: match.start()].rstrip().removesuffix("\\cdot").rstrip()
    written = match[1]
    bare, single = "\\text" not in written, len(re.findall("[a-zA-Z]", written)) == 1
    refused = (
        not rest
        or written.count("(") != written.count(")")
        or rest.endswith(("^", "_", "\\", "+", "-", "=", "/", ","))
        or re.search(r"\\text\{(?:[^{}]*[\s(])?\d", written)  # `3 \text{ or 4}` is no 3
        # Algebra: a letter elsewhere, or a single one right after a number.
        or (bare and LETTER.search(rest))
        or (bare and single and not text[match.start() - 1].isspace())
    )
    unit, scale = (None, "") if refused else _read_unit(written, bare)
    return (rest + scale, unit) if unit else (text, None)


def _read_unit(written: str, bare: bool) -> tuple[Unit | None, str]:
    """The unit, and a factor such as a million that goes to the number. None where a word changes
    the number, or a bare one may be a function or a product of letters."""
    if _CHANGING.search(written):
        return None, ""
    factor, powers = Fraction(1), Counter()
    scale, sign, modifier, others = 1, 1, 1, []
    words = written.replace(" squared", "^2").replace(" cubed", "^3")
    for word, power in _WORD.findall(words):
        lower, name = word.lower(), word.replace(" ", "").replace("\\mu", "u")
        if word in ("\\text", "\\cdot"):
            continue
        # Plural and capitals are forgiven in long names only (`Pa`, not `pa`).
        known = _UNITS.get(name) or (_UNITS.get(name.lower()) if len(name) > 3 else None)
        if word == "/" or lower == "per":
            sign = -1
        elif lower in _DATA["modifiers"]:
            modifier = _DATA["modifiers"][lower]
        elif times := _DATA["scales"].get(lower.removesuffix("s")):
            scale *= times
        elif known:
            raised = sign * modifier * int(power or 1)
            factor *= known.factor**raised
            powers.update({kind: own * raised for kind, own in known.parts})
            modifier = 1
        elif bare and lower not in _COUNTED and not _COMMENT.fullmatch(word):
            return None, ""
        else:
            others.append(lower)
    zeros = len(str(scale)) - 1
    scaled = rf"\times 10^{{{zeros}}}" if scale == 10**zeros else rf"\cdot {scale}"
    scaled = "" if scale == 1 else scaled
    letters = bare and not scaled and not re.search("[a-zA-Z]{4}", written)
    if others or not powers or modifier != 1:
        known = sign == 1 and all(word in _COUNTED for word in others)
        words = " ".join(_COUNTED.get(word, word) for word in others)
        return Unit(words=words, known=known, letters=letters), scaled
    parts = tuple(sorted((kind, power) for kind, power in powers.items() if power))
    return Unit(parts, factor, letters=letters), scaled


_CALENDAR = {Fraction(365, 30): Fraction(12), Fraction(30, 365): Fraction(1, 12)}


def unit_factor(answer: Unit | None, gold: Unit | None) -> Fraction | None:
    """What an answer in its unit is multiplied with; None where the two say different things.

    1 where the gold's unit alone is written, or the answer's and all of it is known.
    """
    if answer is None or gold is None:
        return Fraction(1) if answer is None or answer.known else None
    if not answer.parts or not gold.parts:
        # "square units" are those of the other.
        vague = any(u.words.split()[-1:] == ["unit"] for u in (answer, gold))
        return Fraction(1) if vague or answer.words == gold.words else None
    if answer.parts != gold.parts:
        return None
    # A year of 365 days has twelve months, though a month of its own has 30 days.
    return _CALENDAR.get(answer.factor / gold.factor, answer.factor / gold.factor)
