"""Numbers and units: read them without sympy, and decide exactly whether two are equal.

A unit in the gold or in the answer alone is commentary and is dropped; two units that are known
must measure the same thing, and then 5 m is 500 cm, not 5 cm. Two symbols of which one is not
known (`\\text{ Gs}`) must be the same; a longer word that is not known is commentary.
"""

import re
from dataclasses import dataclass, replace
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


# kind of quantity -> unit names -> how many of the kind's base unit one is
_KINDS: dict[str, dict[str, Fraction]] = {
    "length": {
        "nanometer|nanometre": Fraction(1, 10**9),
        "micrometer|micron": Fraction(1, 10**6),
        "millimeter|millimetre": Fraction(1, 1000),
        "cm|centimeter|centimetre": Fraction(1, 100),
        "m|meter|metre": Fraction(1),
        "kilometer|kilometre": Fraction(1000),
        "in|inch|inches": Fraction(254, 10**4),
        "ft|foot|feet": Fraction(3048, 10**4),
        "yd|yard": Fraction(9144, 10**4),
        "mi|mile": Fraction(1609344, 1000),
        r"\AA|angstrom": Fraction(1, 10**10),
        "furlong": Fraction(201168, 1000),
        "ly|lightyear": Fraction(94607304725808, 10) * 1000,
        "pc|parsec": Fraction(30857, 1) * 10**12,
        "kiloparsec": Fraction(30857, 1) * 10**15,
        "megaparsec": Fraction(30857, 1) * 10**18,
        "AU|astronomical unit": Fraction(1495978707, 1) * 100,
    },
    "mass": {
        "milligram": Fraction(1, 1000),
        "g|gram": Fraction(1),
        "kilogram": Fraction(1000),
        "lb|lbs|pound": Fraction(45359237, 10**5),
        "oz|ounce": Fraction(45359237, 16 * 10**5),
        "ton": Fraction(45359237 * 2000, 10**5),
        "tonne": Fraction(10**6),
    },
    "time": {
        "millisecond": Fraction(1, 1000),
        "s|sec|second": Fraction(1),
        "min|minute": Fraction(60),
        "h|hr|hour": Fraction(3600),
        "day": Fraction(86400),
        "week": Fraction(7 * 86400),
        "month": Fraction(30 * 86400),
        "yr|year": Fraction(365 * 86400),
    },
    "money": {"dollar|USD|usd|bucks": Fraction(1), "cent|cents": Fraction(1, 100)},
    "angle": {"degree|deg": Fraction(1)},
    "radian": {"radian|rad": Fraction(1)},
    "volume": {
        "ml|milliliter|cc": Fraction(1, 1000), "L|l|liter|litre": Fraction(1),
        "gal|gallon": Fraction(3785411784, 10**9), "quart": Fraction(946352946, 10**9),
        "pint": Fraction(473176473, 10**9),
    },
    "energy": {
        "J|joule": Fraction(1), "kilojoule": Fraction(1000), "erg|ergs": Fraction(1, 10**7),
        "eV|electronvolt": Fraction(1602176634, 10**28),
        "cal|calorie": Fraction(4184, 1000),
        "kcal|kilocalorie": Fraction(4184), "kWh": Fraction(3_600_000),
    },
    "force": {"N|newton": Fraction(1), "dyne": Fraction(1, 10**5)},
    "power": {"W|watt": Fraction(1), "kilowatt": Fraction(1000), "megawatt": Fraction(10**6)},
    "pressure": {
        "Pa|pascal": Fraction(1), "atm|atmosphere": Fraction(101325), "bar": Fraction(10**5),
    },
    "temperature": {"K|kelvin": Fraction(1)},
    "celsius": {"celsius": Fraction(1)},
    "fahrenheit": {"fahrenheit": Fraction(1)},
    "frequency": {"Hz|hertz": Fraction(1)},
    "voltage": {"V|volt": Fraction(1)},
    "current": {"A|amp|ampere": Fraction(1)},
    "capacitance": {"F|farad": Fraction(1)},
    "field": {"T|tesla": Fraction(1), "gauss": Fraction(1, 10**4)},
    "charge": {"C|coulomb": Fraction(1)},
    "resistance": {r"ohm|\Omega": Fraction(1), "kohm": Fraction(1000)},
    "amount": {"mol|mole": Fraction(1)},
    "speed": {"mph": Fraction(1609344, 3600 * 1000), "kmh|kph": Fraction(10, 36)},
    "area": {"acre": Fraction(1), "hectare": Fraction(247105, 10**5)},
}  # fmt: skip
# A kind that is made of others: how many of their base units its own one is, and their powers.
_MADE_OF: dict[str, tuple[Fraction, dict[str, int]]] = {
    "volume": (Fraction(1, 1000), {"length": 3}),
    "area": (Fraction(40468564224, 10**7), {"length": 2}),
    "speed": (Fraction(1), {"length": 1, "time": -1}),
    "frequency": (Fraction(1), {"time": -1}),
    "force": (Fraction(1000), {"mass": 1, "length": 1, "time": -2}),
    "energy": (Fraction(1000), {"mass": 1, "length": 2, "time": -2}),
    "power": (Fraction(1000), {"mass": 1, "length": 2, "time": -3}),
    "pressure": (Fraction(1000), {"mass": 1, "length": -1, "time": -2}),
    "charge": (Fraction(1), {"current": 1, "time": 1}),
    "voltage": (Fraction(1000), {"mass": 1, "length": 2, "time": -3, "current": -1}),
    "capacitance": (Fraction(1, 1000), {"mass": -1, "length": -2, "time": 4, "current": 2}),
    "field": (Fraction(1000), {"mass": 1, "time": -2, "current": -1}),
    "resistance": (Fraction(1000), {"mass": 1, "length": 2, "time": -3, "current": -2}),
}
_NAMES = {
    name: (kind, factor)
    for kind, names in _KINDS.items()
    for spelled, factor in names.items()
    for name in spelled.split("|")
}
_PREFIXES = {"f": -15, "p": -12, "n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12}
# The symbols that take such a prefix, with those that they take.
_PREFIXED = {
    **dict.fromkeys(
        ["J", "eV", "W", "Pa", "Hz", "V", "A", "N", r"\Omega", "C", "F", "T", "mol"], "fpnumkMGT"
    ),
    **{"m": "fpnumk", "g": "pnumk", "s": "fpnum", "L": "um", "pc": "kMG", "yr": "kMG"},
}
_SCALES = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9,
    "trillion": 10**12,
}  # fmt: skip
_MODIFIERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
# Bare words (outside `\text`) that say what is counted.
_COUNTED = frozenset(
    {"unit", "people", "way", "student", "apple", "coin", "ticket", "point", "block", "triangle"}
    | {"time", "euro", "rupee", "page", "card", "ball", "book", "child", "children", "men", "word"}
    | {"solution", "integer", "pair", "revolution", "player", "team", "person"}
)
# Words after a number that make it another one, or no answer: `5 squared`, `5 \text{ or more}`.
_CHANGING = re.compile(
    r"^\s?(?:\\text\{)?\s?(?:squared|cubed|factorial|halves|thirds"
    r"|(?:four|fif|six|seven|eigh|nin|ten|hundred|thousand)ths)(?![a-zA-Z])"
    r"|(?<![a-zA-Z])(?:or|than|and a|not|wrong)(?![a-zA-Z])"
)
_FUNCTION = re.compile(r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_LETTER = re.compile(r"[a-zA-Z]")
# Any other bare word after a number; not a function or letter whose backslash is missing.
_COMMENT = re.compile(
    r"(?!a?r?c?(?:sin|cos|tan|cot|sec|csc)|log|exp|sqrt|frac|theta|alpha|beta|gamma|delta|sigma"
    r"|lambda|omega|infty|times)[a-zA-Z]{4,20}"
)
_POWER = r"(?:\s?\^\s?(?:\{\s?-?\d\s?\}|-?\d))?"
_TOKEN = rf"(?:\\text\{{[^{{}}]*\}}|\\mu\s?[a-zA-Z]|[a-zA-Z]?\\Omega|\\AA|[a-zA-Z]{{1,20}}){_POWER}"
_TRAILING = re.compile(
    rf"(?:(?<=[\d\s}})\]%])|(?=\\text))({_TOKEN}(?:\s?(?:\\cdot|\*|/)?\s?{_TOKEN}){{0,5}})\.?$"
)
_BELOW = re.compile(  # J/(mol K)
    r"(?<=\})\s?/\s?\(((?:\\text\{[^{}]*\}|\\cdot|\^-?\d|[\sa-zA-Z*])+)\)$"
    r"|/\s?\((\s?\\text\{(?:\\text\{[^{}]*\}|\\cdot|\^-?\d|[\sa-zA-Z*{}])+)\)$"
)
_DEGREE = re.compile(r"\s*\^\\circ\s*(?:\\text\{\s*)?([CF]|)\s*\}?$")
_MONEY = re.compile(
    r"(?P<sign>[-+]?)\s*(?P<name>\\\$|US\s?\\?\$|[€£¥₹]|\\text\{\s*(?:Rs\.?|USD|US)\s*\})\s*"
)
_MODULUS = re.compile(
    r"\s*(?:\(\s*(?:\\[bp]?mod|\\text\{\s*mod\s*\}|mod)\s*(?P<round>[^()]{1,20})\)"
    r"|\\pmod\s*(?P<bare>\{[^{}]{1,20}\}|\w))$"
)
_SYMBOL = re.compile(r"[a-zA-Z]{2,3}(?:\^-?\d)?")
_WORD = re.compile(
    r"\\mu\s?[a-zA-Z]+|[a-zA-Z]?\\Omega|\\AA|\\text|\\cdot|[a-zA-Z]+|\^\s?\{?\s?(-?\d)|/"
)


@dataclass(frozen=True)
class Unit:
    """A unit as far as it is understood.

    parts: sorted (kind, power) of a unit that is understood wholly, else ().
    factor: how many base units one of it is.
    symbol: as written, of a unit that is not understood but has the form of one, else "".
    kind: what a unit of one known name measures, else "".
    letters: whether it is written so that it may be a product (`m g`, not `\\text{mg}`, `meters`).
    """

    parts: tuple[tuple[str, int], ...]
    factor: Fraction
    symbol: str = ""
    kind: str = ""
    letters: bool = False


_DOLLAR = Unit((("money", 1),), Fraction(1), kind="money")


def strip_unit(text: str) -> tuple[str, Unit | None]:
    """(text without its unit, the unit) of a cleaned answer; None where it has none.

    Letters are a unit only where they are `\\text{…}` after something, or where a known name
    follows a plain number, a single letter after a space: `2s` stays an expression.
    """
    money = _MONEY.match(text)
    if money is not None and money.end() < len(text):
        rest, unit = _strip_trailing(text[money.end() :])
        dollars = money.group("name")[0] in "\\U" and "R" not in money.group("name")
        if unit is None or not unit.parts:
            name = re.sub(r"\\text|[\s{}.]", "", money.group("name"))
            unit = _DOLLAR if dollars else Unit((), Fraction(1), symbol=name)
        return money.group("sign") + rest, unit
    return _strip_trailing(text)


def _strip_trailing(text: str) -> tuple[str, Unit | None]:
    below = _BELOW.search(text, max(0, len(text) - 160))
    if below is not None:
        flat = f"{text[: below.start()]}/{below.group(1) or below.group(2)}"
        rest, unit = _strip_trailing(flat)
        return (rest, unit) if unit is not None else (text, None)
    modulus = _MODULUS.search(text, max(0, len(text) - 60)) if "mod" in text else None
    if modulus is not None and modulus.start() > 0:
        number = re.sub(r"[\s{}]", "", modulus.group("round") or modulus.group("bare"))
        return text[: modulus.start()], Unit((), Fraction(1), symbol=f"mod {number}")
    degree = _DEGREE.search(text)
    if degree is not None and degree.start() > 0 and not _FUNCTION.search(text):
        kind = {"C": "celsius", "F": "fahrenheit"}.get(degree.group(1), "angle")
        return text[: degree.start()], Unit(((kind, 1),), Fraction(1), kind=kind)
    tail = max(0, len(text) - 160)  # units are short; the search stays so, too
    match = _TRAILING.search(text, tail)
    if match is None:
        return text, None
    rest = text[: match.start()].rstrip().removesuffix("\\cdot").rstrip()
    written = match.group(1)
    if not rest or rest.endswith(("^", "_", "\\", "+", "-", "=", "/", ",")):
        return text, None
    if re.search(r"\\text\{(?:[^{}]*[\s(])?\d", written):
        return text, None  # `3 \text{ or 4}` is no 3
    bare = "\\text" not in written
    letters = re.sub(r"[^a-zA-Z]", "", written)
    spaced = text[match.start() - 1].isspace()
    if bare and (_LETTER.search(_COMMAND.sub("", rest)) or (len(letters) == 1 and not spaced)):
        return (
            text,
            None,
        )  # algebra: a letter elsewhere, or a single one right after a number
    unit, scale = _read_unit(written, bare)
    if unit is None:
        return text, None
    if bare and scale == 1 and not re.search("[a-zA-Z]{4}", written):
        unit = replace(unit, letters=True)
    if scale != 1:
        zeros = len(str(scale)) - 1
        rest += rf"\times 10^{{{zeros}}}" if scale == 10**zeros else rf"\cdot {scale}"
    return rest, unit


def unit_factor(answer: Unit | None, gold: Unit | None) -> Fraction | None:
    """What an answer in its unit is multiplied with; None where the two measure different things.

    1 where either has no unit, or words that are no unit.
    """
    if answer is None or gold is None:
        return Fraction(1)
    if answer.symbol and gold.symbol:
        return Fraction(1) if answer.symbol == gold.symbol else None
    if (answer.symbol and gold.kind) or (gold.symbol and answer.kind):
        return None  # no known name is spelled so
    if not answer.parts or not gold.parts:
        return Fraction(1)
    if answer.parts != gold.parts:
        return None
    # A year of 365 days has twelve months, though a month of its own has 30 days.
    return _CALENDAR.get(answer.factor / gold.factor, answer.factor / gold.factor)


_CALENDAR = {Fraction(365, 30): Fraction(12), Fraction(30, 365): Fraction(1, 12)}


def _read_unit(written: str, bare: bool) -> tuple[Unit | None, int]:
    """(unit, scale such as a million). A bare word that is no unit makes it None, and so does one
    that changes the number."""
    if _CHANGING.search(written):
        return None, 1
    written = written.replace(" squared", "^2").replace(" cubed", "^3")
    powers: dict[str, int] = {}
    factor, scale, sign, modifier = Fraction(1), 1, 1, 1
    last: tuple[str, Fraction, int] | None = None
    understood = True
    for match in _WORD.finditer(written):
        word = match.group()
        lower = word.lower()
        singular = lower.removesuffix("s")
        if word in ("\\text", "\\cdot"):
            continue
        if word == "/" or lower == "per":
            sign = -1
        elif match.group(1):
            if last is not None:
                kind, base, how = last
                more = (int(match.group(1)) - 1) * how
                powers[kind] += more
                factor *= base**more
        elif lower in _MODIFIERS:
            modifier = _MODIFIERS[lower]
        elif singular in _SCALES:
            scale *= _SCALES[singular]
        elif (known := _known(word)) is not None:
            kind, base = known
            powers[kind] = powers.get(kind, 0) + sign * modifier
            factor *= base ** (sign * modifier)
            last, modifier = (kind, base, sign), 1
        elif bare and singular not in _COUNTED and not _COMMENT.fullmatch(word):
            return None, scale
        else:
            understood = False
    if not understood or not powers or modifier != 1:
        symbol = re.sub(r"\\text|[\s{}.~]", "", written)
        is_one = _SYMBOL.fullmatch(symbol) and not powers and scale == 1
        return Unit((), Fraction(1), symbol.lower() if is_one else ""), scale
    only = next(iter(powers.items())) if len(powers) == 1 else ("", 0)
    for kind in [kind for kind in powers if kind in _MADE_OF]:
        how_many, parts = _MADE_OF[kind]
        power = powers.pop(kind)
        factor *= how_many**power
        for part, times in parts.items():
            powers[part] = powers.get(part, 0) + times * power
    parts = tuple(sorted((k, p) for k, p in powers.items() if p))
    return Unit(parts, factor, kind=only[0] if only[1] == 1 else ""), scale


def _known(word: str) -> tuple[str, Fraction] | None:
    """A unit name; plural and capitals are forgiven in long ones only (`Pa`, not `pa`)."""
    word = word.replace(" ", "").replace("\\mu", "u")
    if word in _NAMES:
        return _NAMES[word]
    lower = word.lower()
    if len(word) == 3 and word[:2] in _NAMES and word[2] == "s":  # hrs, yrs, kms
        return _NAMES[word[:2]]
    if word[:1] in _PREFIXES and word[:1] in _PREFIXED.get(word[1:], ()):
        kind, factor = _NAMES[word[1:]]
        return kind, factor * Fraction(10) ** _PREFIXES[word[0]]
    if len(word) > 3:
        return _NAMES.get(lower) or _NAMES.get(lower.removesuffix("s"))
    return None
