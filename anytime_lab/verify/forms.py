"""Bring an answer to one way of writing, then read its form: number, words, tuple, set, matrix, …

Nothing is evaluated here, and nothing that could change a value is removed. The forms are read
without sympy, so that `(1, 2)`, `[1, 2]` and `\\{1, 2\\}` stay apart whatever a parser
makes of them.
"""

import functools
import itertools
import math
import re
import tomllib
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from anytime_lab.verify.quantities import (
    LETTER,
    Number,
    Unit,
    join_thousands,
    read_number,
    strip_unit,
)

MAX_CHARS = 1000  # of one answer; a longer one is no answer (the longest of MATH has 160)
MAX_DEPTH = 40  # of nested brackets

_DATA = tomllib.loads(Path(__file__).with_name("writing.toml").read_text(encoding="utf-8"))
_SIGNS, _COMMANDS = _DATA["characters"], _DATA["commands"]
_ROOT = re.compile(r"√\s*(?:\(([^()]{1,200})\)|(\d+(?:\.\d+)?|[a-zA-Zπ]))")
_RAISED = re.compile("([⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ]+)|[₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙ]+")  # or lowered
_normal = functools.partial(unicodedata.normalize, "NFKC")
_ODD = re.compile(r"[^ -\x7f\n\t]")
_COMMA, _SEMICOLON = re.compile(","), re.compile(";")
_KEPT_SPACE = re.compile(r"(\\[a-zA-Z]+ (?=\s*[a-zA-Z])|(?<=\d) (?=\s*\d))\s*|\s+")
_COMMAND = re.compile(r"\\(?!text)[a-zA-Z]")
_WHOLE = (
    re.compile(r"\$\$(?P<in>.*)\$\$"),
    re.compile(r"(?<!\\)\$(?P<in>(?:[^$\\]|\\.)*)\$"),
    re.compile(r"\\\((?P<in>.*)\\\)"),
    re.compile(r"\\\[(?P<in>.*)\\\]"),
    re.compile(r"\*\*(?P<in>.*)\*\*"),
    re.compile(r"`(?P<in>.*)`"),
    re.compile(r"\\begin\{(equation|align|gather|math)\*?\}(?P<in>.*)\\end\{\1\*?\}"),
)
_WHOLE_BOX = re.compile(r"\\(?:boxed|fbox|framebox|ensuremath|displaylines)\s*(?=\{)")
_END = re.compile(  # spaces and marks at the end
    r"(?:\\(?:[,;:!> ]|$)|\\q?quad|[,;]|(?<!\.)\.|\s)+$"
)
_MARKS = re.compile(r"(?:[,;:?]|(?<!\.\.)\.|(?<=\s)!|\s)+$")  # 5! and 0.1... have none


class UnreadableError(ValueError):
    """The text is no answer that a grader should spend time on."""


def clean(text: str) -> str:
    """The same answer in one way of writing.

    Raises:
        UnreadableError: Longer than `MAX_CHARS`, or brackets nested deeper than `MAX_DEPTH`.
    """
    if len(text) > MAX_CHARS:
        raise UnreadableError("too long")
    text = _ROOT.sub(lambda m: rf"\sqrt{{{m[1] or m[2]}}}", text)
    text = _RAISED.sub(lambda m: f"{'^' if m[1] else '_'}{{{_normal(m[0])}}}", text)
    text = re.sub(r"\s+", " ", _ODD.sub(_folded, text))
    if max(_depths(text), default=0) > MAX_DEPTH:
        raise UnreadableError("unparsable")
    # Delimiters, emphasis and boxes around the whole text off, however often they are nested.
    for _ in range(8):
        before, text = text, _END.sub("", text.strip())
        whole = next(filter(None, (pattern.fullmatch(text) for pattern in _WHOLE)), None)
        text = whole["in"] if whole else text
        box = _WHOLE_BOX.match(text)
        if box is not None and _encloses(text[box.end() :]):
            text = text[box.end() + 1 : -1]
        if text == before:
            break
    for needle, pattern, replacement in _REWRITTEN:
        if needle in text and pattern.search(text):
            text = pattern.sub(replacement, text)
    return _MARKS.sub("", text).lstrip(":= ").strip()


def key(text: str) -> str:
    """Cleaned text without spaces, but for those that end a command: equal keys, equal answers."""
    return _KEPT_SPACE.sub(lambda m: m.group(1) or "", text.strip())


def _depths(text: str, opening: str = "([{", closing: str = ")]}") -> list[int]:
    """How many brackets are open after each character."""
    return list(itertools.accumulate((c in opening) - (c in closing) for c in text))


def _encloses(text: str) -> bool:
    """Whether the bracket that a text begins with is closed by its last character."""
    depths = _depths(text, "{", "}") if text.startswith("{") else _depths(text)
    return 0 in depths and depths.index(0) == len(text) - 1


def _split(text: str, separator: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """(parts, what stands between them): a text cut at separators outside all brackets."""
    depths = _depths(text)
    found = [match for match in separator.finditer(text) if not depths[match.start()]]
    cuts = [0, *(at for match in found for at in match.span()), len(text)]
    parts = [text[a:b] for a, b in zip(cuts[::2], cuts[1::2], strict=True)]
    return parts, [match.group() for match in found]


def _split_commas(text: str, one: bool = True) -> list[str]:
    """Split at commas outside all brackets, but not within numbers such as `1,000`.

    Without a space after any comma all commas part, but that `1,000` may be the `one` number.
    """
    parts, _ = _split(join_thousands(text), _COMMA)
    spaced = any(part[:1].isspace() for part in parts[1:])
    return parts if spaced or (one and len(parts) == 1) else _split(text, _COMMA)[0]


def _folded(odd: re.Match[str]) -> str:
    """A character beyond ASCII, or a control character, in ASCII as far as there is a way."""
    character = odd.group()
    if character in _SIGNS:
        return _SIGNS[character]
    if (digit := unicodedata.decimal(character, None)) is not None:
        return str(digit)
    if unicodedata.category(character) in ("Cf", "Cc", "Cs", "Co", "Cn"):
        return ""  # invisible: zero-width, control, lone surrogates
    if unicodedata.decomposition(character).startswith("<fraction>"):
        value = Fraction(unicodedata.numeric(character)).limit_denominator(10)
        return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    # Full-width and mathematical letters become plain ones; the rest stays.
    return "".join(_SIGNS.get(c, c) for c in _normal(character))


def _between(bounds: re.Match[str]) -> str:
    """`1 < x < 3` of two bounds that hold both; as they stand where they point the same way."""
    name, sign, bound, other_sign, other = bounds.groups()
    if (sign in _MORE) == (other_sign in _MORE):
        return bounds.group()
    return f"{bound} {TURNED[sign]} {name} {other_sign} {other}"


def _half_of_day(clock: re.Match[str]) -> str:
    """A time with a.m. or p.m. as a unit."""
    hour, half, word = clock.groups()
    half = f"{half.lower()}m" if half else {"noon": "pm", "midnight": "am"}[word]
    return rf"{hour}\text{{ {half}}}"


def _degrees(arc: re.Match[str]) -> str:
    """Degrees with minutes and seconds as one number of degrees."""
    whole, minutes, seconds = (int(part or 0) for part in arc.groups())
    return exact(whole + Fraction(minutes, 60) + Fraction(seconds, 3600)).text + r"^\circ"


_LESS, _MORE = ("<", "\\le"), (">", "\\ge")
TURNED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
_ARGUMENT = r"\s*(\d|[a-zA-Z]|\\pi(?![a-zA-Z])|\\[a-zA-Z]+(?=[\s\d}]))"
_BRACED = r"\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"
_BOUND = r"([<>]|\\[lg]e(?![a-zA-Z]))"
_LETTER_AT_END = re.compile(r"(?<!\\)[a-zA-Z]\)*$")
# What is written in several ways, and the one it becomes, in order.
_WAYS: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    # Fonts, sizes, boxes and spaces.
    (
        r"\\(?:text(?:rm|bf|it|normal|sf|tt|sc|up)?|mbox|hbox|mathrm|mathbf|mathit|mathsf"
        r"|mathtt|boldsymbol|bm|operatorname\*?)\s*(?=\{)",
        r"\\text",
    ),
    (r"\\text\{\s*(\\text\{[^{}]*\})\s*\}", r"\1"),
    (r"^\s*\\text\{\s*([-+]?(?:\d|\.\d)[^{}]*)\}\s*$", r"\1"),  # \text{2.5 cm}
    (  # a formula in bold or roman letters: \mathbf{\frac12}
        r"^\s*\\text(\{(.*)\})\s*$",
        lambda m: m[2] if _encloses(m[1]) and _COMMAND.search(m[2]) else m[0],
    ),
    (
        r"^\s*\\begin\{(?:cases|aligned|gathered)\}([^&]*)\\end\{\w+\}\s*$",
        lambda m: ", ".join(m[1].split(r"\\")),
    ),
    (r"\{?\\(?:rm|bf|it)\s+([a-zA-Z]{1,20})\s*\}?", r"\\text{\1}"),
    (r"(?<=\d)(?:,\\!|\{,\}(?:\\!)?)\s*(?=\d{3})", ""),
    (r"(?:\\text)?\{:\}", ":"),
    (
        r"\\(?:left|right|middle|bigl?|bigr?|Bigl?|Bigr?|biggl?|biggr?|Biggl?|Biggr?"
        r"|displaystyle|textstyle|limits|nolimits|mathord|hfill|strut|mathstrut|boxed|fbox"
        r"|framebox|underline|tiny|small|large|Large|LARGE|huge|Huge)(?![a-zA-Z])"
        r"|\\phantom\s*(?:\{[^{}]*\}|[^\s{}])|\\[hv]space\*?\{[^{}]*\}|\\!|\\label\{[^{}]*\}"
        r"|\\(?:text)?color\s*\{[^{}]*\}",
        "",
    ),
    (r"(?<=\d)\s*\\q?quad\s*(?=-?\d)", ", "),  # 2 \quad 3
    (
        r"(?<![\d.,{])\d{1,3}(?:(?:\\,|\\ | )\d{3})+(?!\d)",  # 10\,000
        lambda m: re.sub(r"[^\d]", "", m.group()),
    ),
    (r"(?<!\\)\\(?:quad|qquad|enspace|thinspace|;|:|,|>| |\n)|~", " "),
    (r"\s+", " "),
    # Commands with several names, and names without their backslash.
    (r"\\([a-zA-Z]+)", lambda m: _COMMANDS.get(m[1], m[0])),
    (r"\\not\s*=", r"\\ne "),
    (r"\{\s*(\w+)\s*\\choose\s*(\w+)\s*\}", r"\\binom{\1}{\2}"),
    (r"\\log\s*_\s*(?:e|\{\s*e\s*\})", r"\\ln"),
    (r"\\mathring\s*\{\s*A\s*\}", r"\\AA"),
    (r"(?:\{\}|^)_\{?(\d+)\}?\s*C\s*_\{?(\d+)\}?", r"\\binom{\1}{\2}"),
    (r"\\dot\s*\{?(\d)\}?(\d*)\\dot\s*\{?(\d)\}?", r"\\overline{\1\2\3}"),
    (r"(?<=\d)\s*(?:\\text\{\s*to\s*\}|\bto\b)\s*(?=\d)", ":"),
    (r"\\mathbb\s*R", r"\\mathbb{R}"),
    (r"(?<![a-zA-Z\\])(infinity|infty|Infinity|inf|pi|Pi)", lambda m: _DATA["words"][m[1]]),
    (r"(?<![a-zA-Z\\])sqrt\s*\(([^()]{1,400})\)", r"\\sqrt{\1}"),
    (r"(?<![a-zA-Z\\])sqrt(?=\s*[\d{])", r"\\sqrt"),
    (r"[<>!]=|\*\*|\+/-|\{,\}|\\[%#&]", lambda m: _DATA["signs"][m[0]]),
    (r"\^(?: \\circ|\{\\circ ?\})", r"^\\circ"),
    # What words say.
    (
        r"\s*(?:\\text\{\s*(?:percent|per cent|pct)\s*\}"
        r"|(?<![a-zA-Z])(?:percent|pct)(?![a-zA-Z]))",
        "%",
    ),
    (r"(?<=\w)\s*\\text\{\s*\(?(?:in )?base\s*\}?\s*(\d{1,2})\)?\s*\}?$", r"_{\1}"),
    (r"(?<=\d)\s*(?:\^\s*\{?)?\s*(?:\\text\{\s*)?(?:st|nd|rd|th)[\s}]*$", ""),
    (  # x > 1 and x < 3
        rf"([a-zA-Z])\s*{_BOUND}([^<>=,]{{1,60}}?)(?:\\text\{{\s*and\s*\}}|(?<!\w)and(?!\w))\s*"
        rf"\1\s*{_BOUND}([^<>=,]{{1,60}})$",
        _between,
    ),
    (
        r"\s*,?\s*(?:\\text\{\s*,?\s*(?:and|or)\s*\}"
        r"|(?<![\w\\])(?:and|or)(?!\w| (?:more|less|an?)\b))\s*",
        ", ",
    ),
    (r"\\text\{\s*(\\?[a-zA-Z0-9.,%()+\-]|\d+(?:\.\d+)?|)\s*\}", r" \1"),
    # Braces that are left out, or not needed.
    (rf"\\(frac|binom)(?![a-zA-Z]){_ARGUMENT}{_ARGUMENT}", r"\\\1{\2}{\3}"),
    (rf"\\(frac|binom)(?![a-zA-Z]){_ARGUMENT}\s*(?=\{{)", r"\\\1{\2}"),
    (rf"\\(frac|binom)(?![a-zA-Z]){_BRACED}{_ARGUMENT}", r"\\\1{\2}{\3}"),
    (rf"\\sqrt(?![a-zA-Z]){_ARGUMENT}", r"\\sqrt{\1}"),
    (r"\\(frac|sqrt)(?![a-zA-Z])\s+(?=[{\[])", r"\\\1"),
    (r"(\\frac\{[^{}]*\})\s+(?=\{)", r"\1"),
    (
        r"(?<![a-zA-Z\d.])(\d+(?:\.\d*)?|\.\d+)[eE]\{?([-+]?\d{1,4})\}?(?![\w.])",
        r"\1\\times 10^{\2}",
    ),
    (r"([\^_])\s*\{\s*([a-zA-Z0-9])\s*\}", r"\1\2"),
    (r"(?<!\\)\$", ""),
    # Times of day, degrees with minutes, conditions, and intervals as the French write them.
    (  # `9 a.m.`, `9:30\text{ pm}`, but not the product `9am`
        r"(?<![\w.:])(\d{1,2}(?::\d\d)?)(?:\s|(?<=:\d\d)|(?=\\text))\s*(?:\\text\{)?\s*"
        r"(?:([apAP])\.?\s?[mM]\.?|(noon|midnight))\s*\}?$",
        _half_of_day,
    ),
    (r"^(\d{1,9})\s?\^\\circ\s?(\d\d?)\s?'(?:\s?(\d\d?)\s?(?:''|\"))?$", _degrees),  # 30° 15'
    (  # x = 2k\pi, k \in \mathbb{Z}
        r"(?<=\S)\s*[,;]?\s*\(?(?:\\text\{\s*,?\s*(?:where|for|with)[^{}]{0,40}\}\s*)?"
        r"[a-zA-Z]\s*\\in\s*\\mathbb\s?\{?[ZN]\}?(?:\^[+*]|_\+)?\s*\)?$",
        "",
    ),
    (  # ]1, 2[
        r"(^|\\cup\s*|\\in\s*)([\[\]])([^\[\](),]{1,50},[^\[\]()]{1,50})([\[\]])",
        lambda m: m[1] + {"[": "[", "]": "("}[m[2]] + m[3] + {"[": ")", "]": "]"}[m[4]],
    ),
    (r"\s+", " "),
]
_REWRITTEN = [  # A command ends with its name.
    (
        "\\" if pattern.startswith(r"\\") else "",
        re.compile(pattern + (r"(?![a-zA-Z])" if _LETTER_AT_END.search(pattern) else "")),
        replacement,
    )
    for pattern, replacement in _WAYS
]


# Texts that say that there is no answer, once folded.
NOTHING = re.compile(r"no (?:real |integer |such )?(?:solution|root)|empty(?: set)?")
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)
# What follows a choice's letter and takes it back, or names another one.
UNSURE = re.compile(
    r"\W*(?:is|are|was|isn't|not(?! (?:enough|possible|determin))|or|and|nor|but|if|unless|maybe"
    r"|perhaps|wrong|incorrect)\b|[/,;=|&]|.*\(\s*[A-J]\s*\)|.*(?<![A-Za-z\\])[A-J][.):]"
    r"|\W*(?:\\text\{\W*)?[A-J]\W*$|.*\b(?:or|and)\W+[A-J]\b",
    re.S,
)
_CHOICE = re.compile(r"(?:\\text\{)?\s*\(?\s*([A-J])\s*(?:[).:]\s*\}?|\}\s*[).:]?)\s*(.*)", re.S)
_ALL_TEXT = re.compile(r"(?:\\text\{[^{}]*\}|[\s\-,.'\"()])*")
_PROSE = re.compile(
    r"[a-zA-Z][a-zA-Z'\-]*(?: [a-zA-Z][a-zA-Z'\-]*)+|[A-Z][a-z]{2,}|[a-z]{4,}|[Nn]o|yes|DNE"
)
_NO_PROSE = re.compile(
    r"\b(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|arcsin|arccos|arctan|frac|theta|alpha|beta)\b"
    r"|^(?:[a-zA-Z] )+[a-zA-Z]$"
)


@dataclass(frozen=True)
class Form:
    """An answer as it is read.

    kind: "expression", a number or another; "words"; "relation" (`a = b = c`, `2 < x \\le 3`); the
        brackets of a tuple, point or interval, "()", "(]", "[)" or "[]"; "matrix" of rows in "[]":
        there the order counts. A set "{}", several answers ",", a union "\\cup": there it does not.
    text: Of an expression, cleaned and without its unit; of words, in lower case with one space
        between them.
    items: What it consists of; of a choice `(E) 12`, the 12.
    number, unit: Of an expression that is one, or has one.
    written: As it stands among the items of a relation, or as what may be a product of letters in
        place of a unit (`2 m g`).
    signs: Those between the items of a relation.
    choice: The letter of "(E)" or of "(E) 12".
    """

    kind: str
    text: str = ""
    items: tuple["Form", ...] = ()
    number: Number | None = None
    unit: Unit | None = None
    written: str = ""
    signs: tuple[str, ...] = ()
    choice: str = ""


expression = functools.partial(Form, "expression")
TUPLES, LISTS = ("()", "(]", "[)", "[]"), (",", "{}")


def exact(value: Fraction) -> Form:
    """A number as LaTeX."""
    fraction = rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    text = str(value) if value.denominator == 1 else fraction
    return expression(text, number=Number(value))


def read_words(text: str) -> Form | None:
    """Text answers: `\\text{...}` wholly, plain prose, or a choice letter."""
    choice = _CHOICE.fullmatch(text)
    if choice is None and re.fullmatch(r"\(?[A-J]\)?|\(?\\text\{\s*\(?[A-J]\)?\s*\}\)?", text):
        letter = re.sub(r"\\text|[^A-J]", "", text)
        return Form("words", letter.lower(), choice=letter)
    if choice is not None and not UNSURE.match(rest := choice.group(2).strip()):
        return Form("words", fold_words(text), (read_form(rest),) if rest else (), choice=choice[1])
    if "\\text" in text:
        prose = _ALL_TEXT.fullmatch(text)
    else:
        prose = _PROSE.fullmatch(text) and not _NO_PROSE.search(text)
    return Form("words", fold_words(text)) if prose else None


def fold_words(text: str) -> str:
    """Words without what does not count: case, fonts, marks, articles, the order of a list."""
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)
    listed = re.split(r"\s*(?:,|\band\b)\s*", text.strip().lower())
    if len(listed) > 1 and all(re.fullmatch(r"[a-z]+(?: [a-z]+)?", part) for part in listed):
        letters = all(len(part) == 1 for part in listed)  # "Bob and Alice" are Alice and Bob
        text = (" " if letters else " and ").join(sorted(listed))
    text = re.sub(r"[^\w\s]|_", " ", text.lower())
    text = re.sub(r"^(?:the|an?) (?=\w{2})", "", " ".join(text.split()))
    return re.sub(r"(?<=\w{3}[^s])s(?!\w)", "", text)  # "no solutions" is "no solution"


MAX_ITEMS = 64
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?\s*(?:\\text\{[^{}\d]+\}|[a-zA-Z]+)),?")
_LEAD = re.compile(
    r"^(?:\\text\{[^{}]{0,80}?(?:\bis|=|:|\bare)\s*\}|(?:the )?(?:final )?answer(?: is:?|:)"
    r"|(?:approximately|about|roughly)\b|\\text\{\s*(?:approximately|about|roughly)\s*\})\s*(?=\S)",
    re.I,
)
_ENVIRONMENT = re.compile(
    r"\\begin\{(p|b|B|small)?(?:matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1?(?:matrix|array)\}",
    re.S,
)
_SIGN = re.compile(r"\\(?:le|ge|ne|approx|in)(?![a-zA-Z])|[=<>]")
_SCALED = re.compile(r"(-?(?:\d+(?:\.\d+)?|\\frac\{\d+\}\{\d+\})?)\s*([a-zA-Z])")  # -x, 2x
_POINT_NAME = re.compile(r"^[A-Z]\s?(?=\([^()]*,)")  # A(1, 2)
_SYMBOL = re.compile(r"\\?[a-zA-Z]+(?:_\w)?(?:\(\\?[a-zA-Z]+\))?")
_PLUS_MINUS = re.compile(r"\\pm(?![a-zA-Z])")
_NAME = re.compile(
    r"\\?[a-zA-Z]+(?:_\{?[\w,]+\}?)?'*(?:\([\w, \\]*\))?"  # x, a_n, f(x), \theta
    r"|\\(?:text|overline)\{[^{}]*\}"
    r"|(?:[a-zA-Z](?:_\w)?|\\angle [A-Z]+)(?:\s*[+\-]\s*[a-zA-Z](?:_\w)?)*"
)
_ALL_REALS = re.compile(r"\\mathbb\{R\}|R|(?:\\text\{\s*)?[Aa]ll real(?: number)?s\s*\}?")
_BUILDER = re.compile(r"([a-zA-Z])\s*(?:\\in\s*\\mathbb\{R\})?\s*[|:](.*)", re.S)
_TRANSPOSED = re.compile(r"(?<=[})])\s?\^\{?\s?(?:T|\\top|\\intercal)\s?\}?$")


@functools.lru_cache(maxsize=4096)  # a gold is read for each answer to it
def read_form(text: str) -> Form:
    """Read an answer or a gold.

    Raises:
        UnreadableError: Too long, too deeply nested, or empty after cleaning.
    """
    return _read(clean(text), 0)


def _read(text: str, depth: int) -> Form:
    text = _LEAD.sub("", text.strip())
    while text.startswith("{") and _encloses(text):
        text = text[1:-1].strip()
    if depth > 12:
        return expression(text)
    if _ALL_REALS.fullmatch(text):
        return Form("()", items=(_LOWEST, _HIGHEST))
    if words := read_words(text):
        if NOTHING.fullmatch(words.text):
            return Form("{}", items=())  # no solution
        return exact(Fraction(NUMBERS.index(words.text))) if words.text in NUMBERS else words
    if number := read_number(text):
        return expression(text, number=number)
    if quantity := _read_quantity(text):
        return quantity
    rest, unit = strip_unit(text)
    if unit and (number := read_number(rest)):
        return expression(rest, number=number, unit=unit, written=text)
    for reader in (_read_list, _read_relation, _read_union, _read_enclosed, _read_matrix):
        if form := reader(text, depth + 1):
            return form
    form = _read(rest, depth + 1) if unit else expression(text)
    with_unit = unit and form.kind == "expression"
    return replace(form, unit=unit, written=text) if with_unit else form


def _read_quantity(text: str) -> Form | None:
    """`1 hour 30 minutes`, `5 feet, 6 inches`: a sum in the last, the smallest of its units."""
    if not text[:1].isdecimal() or text[-1].isdecimal():
        return None
    written = [match.group(1) for match in _QUANTITY.finditer(text)]
    if not 2 <= len(written) <= 4 or _QUANTITY.sub("", text).strip():
        return None
    parts = [(read_number(rest), unit) for rest, unit in map(strip_unit, written)]
    if not all(number and unit and unit.parts == parts[0][1].parts != () for number, unit in parts):
        return None
    sizes = [unit.factor for _, unit in parts]
    if sizes != sorted(set(sizes), reverse=True):
        return None
    value = sum(number.value * unit.factor for number, unit in parts) / sizes[-1]
    return replace(exact(value), unit=parts[-1][1])


def _read_list(text: str, depth: int) -> Form | None:
    """Parts between top-level semicolons, or else commas; ± stands for two."""
    parts, semicolons = _split(text, _SEMICOLON)
    parts = parts if semicolons else _split_commas(text)
    parts = [sign for part in parts if part.strip() for sign in _both_signs(part.strip())]
    if not 1 < len(parts) <= MAX_ITEMS:
        return None
    items = [_read(part, depth) for part in parts]
    for at, item in enumerate(items):
        if item.kind == "expression" and not item.unit and items[-1].unit:
            items[at] = replace(item, unit=items[-1].unit)  # `3, 4 \\text{ cm}`
    return Form(",", items=tuple(items))


def _both_signs(text: str) -> list[str]:
    """`a \\pm b` as its two values. Several ± stay one expression: they may or may not agree."""
    if "\\pm" not in text and text.count("\\mp") == 1:
        text = text.replace("\\mp", "\\pm")
    listed = len(_split_commas(text)) > 1 or text.startswith(("(", "[", "\\{"))
    if len(_PLUS_MINUS.findall(text)) != 1 or "\\mp" in text or listed:
        return [text]
    return [_PLUS_MINUS.sub("+", text).lstrip("+ "), _PLUS_MINUS.sub("-", text)]


def _read_relation(text: str, depth: int) -> Form | None:
    """Relations at the top level; `x \\in S` is S, bounds on one name are intervals."""
    parts, signs = _split(text, _SIGN)
    texts = [part.strip() for part in parts]
    if not 1 <= len(signs) <= 7 or not all(texts[1:]):
        return None
    if signs == ["\\in"]:
        return _read(texts[1], depth)
    if bounds := _bounds([texts[0] or "x", *texts[1:]], signs, depth):  # `\\ge 3`
        return bounds
    if not texts[0]:
        texts, signs = texts[1:], signs[1:]
    if not signs:
        return _read(texts[0], depth)
    items = tuple(replace(_read(part, depth), written=part) for part in texts)
    exact_first = signs[0] == "=" and set(signs[1:]) <= {"\\approx"}
    if exact_first and items[0].number and is_name(texts[1]):
        items = (items[1], items[0], *items[2:])  # `3 = x` as `x = 3`
    return Form("relation", items=items, signs=tuple(signs))


def is_name(text: str) -> bool:
    """Whether a relation's left side only names the answer: `x`, `f(x)`, `m+n`, `\\text{Area}`."""
    return _NAME.fullmatch(key(text)) is not None or _NAME.fullmatch(text) is not None


def _bounds(texts: list[str], signs: list[str], depth: int) -> Form | None:
    """`-2 \\le x < 7`, `x > 3`, `x \\ne 1` as intervals; None where it is anything else."""
    if len(texts) == 3 and _SYMBOL.fullmatch(texts[1]):
        if set(signs) <= {*_MORE}:
            texts, signs = texts[::-1], [TURNED[sign] for sign in signs[::-1]]
        ends = _BRACKETS[signs[0]][0] + _BRACKETS[signs[1]][1] if set(signs) <= {*_LESS} else ""
        return Form(ends, items=(_read(texts[0], depth), _read(texts[2], depth))) if ends else None
    if len(texts) != 2:
        return None
    (name, bound), (sign,) = texts, signs
    if not _SYMBOL.fullmatch(name) and (read_number(name) or _SYMBOL.fullmatch(bound)):
        name, bound, sign = bound, name, TURNED.get(sign, sign)
    scaled, number = _SCALED.fullmatch(name), read_number(bound)
    if scaled and scaled[1] and number:  # -x > 3, 2x > 6
        factor = read_number("-1" if scaled[1] == "-" else scaled[1])
        if factor.value:
            sign = TURNED.get(sign, sign) if factor.value < 0 else sign
            name, bound = scaled[2], exact(number.value / factor.value).text
    absolute = re.fullmatch(r"\| ?[a-zA-Z] ?\|", name) and number and number.value > 0  # |x| < 2
    if absolute:
        low, high = exact(-number.value), exact(number.value)
    elif _SYMBOL.fullmatch(name) and not LETTER.search(bound):
        low = high = _read(bound, depth)
    else:
        return None
    opening, closing = _BRACKETS.get(sign, "()")
    below = Form("(" + closing, items=(_LOWEST, low))
    above = Form(opening + ")", items=(high, _HIGHEST))
    both, between = Form("\\cup", items=(below, above)), Form(opening + closing, items=(low, high))
    less, more, other = (between, both, None) if absolute else (below, above, both)
    kinds = {**dict.fromkeys(_LESS, less), **dict.fromkeys(_MORE, more), "\\ne": other}
    return kinds.get(sign)


_INFINITE = {"\\infty": math.inf, "+\\infty": math.inf, "-\\infty": -math.inf}
_LOWEST, _HIGHEST = expression("-\\infty"), expression("\\infty")
_BRACKETS = {"<": "()", ">": "()", "\\le": "[]", "\\ge": "[]"}


def _read_union(text: str, depth: int) -> Form | None:
    parts = re.split(r"\\cup(?![a-zA-Z])", text)
    if not 2 <= len(parts) <= MAX_ITEMS or not all(part.strip() for part in parts):
        return _read_complement(text, depth)
    items = [_read(part, depth) for part in parts]
    if None in map(_ends, items):
        return Form("\\cup", items=tuple(items))
    joined: list[Form] = []  # of those that touch or overlap: `[2,3] \\cup [3,4]` is `[2,4]`
    for item in sorted(items, key=_ends):
        if joined and _ends(item)[0] <= _ends(joined[-1])[1]:
            low = joined.pop()
            high = max(low, item, key=lambda interval: _ends(interval)[1])
            item = Form(low.kind[0] + high.kind[1], items=(low.items[0], high.items[1]))
        joined.append(item)
    return joined[0] if len(joined) == 1 else Form("\\cup", items=tuple(joined))


def _ends(form: Form) -> tuple[tuple[float | Fraction, bool], ...] | None:
    """The ends of an interval of numbers, in the order in which sets begin and end there."""
    if form.kind not in TUPLES or len(form.items) != 2:
        return None
    low, high = (x.number.value if x.number else _INFINITE.get(key(x.text)) for x in form.items)
    other = any(end.unit or (end.number and end.number.percent) for end in form.items)
    if other or low is None or high is None or low > high:
        return None
    return (low, form.kind[0] != "["), (high, form.kind[1] == "]")


def _read_complement(text: str, depth: int) -> Form | None:
    """`\\mathbb{R} \\setminus \\{1, 2\\}` with numbers as the union of the intervals between."""
    match = re.fullmatch(
        r"\(?(?:\\mathbb\{R\}|\(-\\infty, ?\\infty\))\s*(?:\\setminus|-|\\)\s*\\\{(.*)\\\}\)?",
        text,
    )
    if match is None:
        return None
    points = [_read(part, depth) for part in _split(match[1], _COMMA)[0]]
    if not all(point.number for point in points):
        return None
    points = sorted(points, key=lambda point: point.number.value)
    ends = itertools.pairwise([_LOWEST, *points, _HIGHEST])
    return Form("\\cup", items=tuple(Form("()", items=pair) for pair in ends))


def _read_enclosed(text: str, depth: int) -> Form | None:
    """A set in braces, or a tuple or interval in brackets, around the whole text."""
    if text.startswith("\\{") and text.endswith("\\}"):
        inner = text[2:-2].strip()
        builder = _BUILDER.fullmatch(inner)
        if builder is not None:  # {x | x > 3}
            form = _read(builder.group(2), depth)
            return form if form.kind in (*TUPLES, "\\cup") else None
        if "|" in inner or ":" in inner or "\\}" in inner:
            return None
        form = _read(inner, depth) if inner else Form(",", items=())
        return Form("{}", items=form.items if form.kind == "," else (form,))
    if text == "\\emptyset":
        return Form("{}", items=())
    text = _POINT_NAME.sub("", text)
    if text[:1] not in ("(", "[") or text[-1:] not in (")", "]") or not _encloses(text):
        return None
    parts = _split_commas(text[1:-1], one=False)  # "(100,101)" is a point
    if len(parts) == 1 and text[0] == "(" and text[-1] == ")":
        return _read(text[1:-1], depth)
    if not all(part.strip() for part in parts) or len(parts) > MAX_ITEMS:
        return None
    return Form(text[0] + text[-1], items=tuple(_read(part, depth) for part in parts))


def _read_matrix(text: str, depth: int) -> Form | None:
    transposed = _TRANSPOSED.search(text)
    if transposed is not None:
        form = _read(text[: transposed.start()], depth)
        rows = [row.items for row in form.items if form.kind == "matrix"]
        if len(set(map(len, rows))) == 1:
            return _matrix(zip(*rows, strict=True))
        return form if form.kind in TUPLES else None  # a tuple stands for a column anyway
    scalar, begin, _ = text.partition("\\begin")
    if begin and scalar.strip(" ([") and text.endswith("}"):
        factor = scalar.strip().removesuffix("\\cdot").removesuffix("\\times")
        factor = "-1" if factor == "-" else factor
        form = _read_matrix(text[len(scalar) :], depth)
        cells = [cell for row in form.items for cell in row.items] if form else [None]
        if not all(cell and cell.kind == "expression" for cell in [*cells, _read(factor, depth)]):
            return None
        return _matrix(
            [expression(rf"({factor})\cdot({c.text})") for c in row.items] for row in form.items
        )
    match = _ENVIRONMENT.fullmatch(re.sub(r"^[(\[]\s*(?=\\begin)|(?<=\})\s*[)\]]$", "", text))
    if match is None or "\\begin" in match.group(2):
        return None
    rows = [row for row in re.split(r"\\\\", match.group(2).replace("\\hline", "")) if row.strip()]
    cells = [row.split("&") for row in rows]
    if not cells or len(cells) * max(map(len, cells)) > MAX_ITEMS:
        return None
    return _matrix([_read(cell, depth) for cell in row] for row in cells)


def _matrix(rows: Iterable[Iterable[Form]]) -> Form:
    return Form("matrix", items=tuple(Form("[]", items=tuple(row)) for row in rows))
