"""The outer form of an answer: number, expression, words, tuple, list, union, matrix, relation.

The forms are read without sympy, so that `(1, 2)`, `[1, 2]` and `\\{1, 2\\}` stay apart whatever a
parser makes of them. What is inside is compared by `compare`.
"""

import functools
import re
from dataclasses import dataclass
from fractions import Fraction

from anytime_lab.verify.latex import braced_end, clean, key, split_commas, split_top
from anytime_lab.verify.numbers import Number, read_number
from anytime_lab.verify.units import Unit, strip_unit
from anytime_lab.verify.words import NOTHING, NUMBERS, Words, read_words

MAX_ITEMS = 64


@dataclass(frozen=True)
class Atom:
    """A number or an expression; `text` is cleaned, without its unit.

    whole: with its unit, where that may as well be a product of letters (`2 m g`).
    """

    text: str
    number: Number | None = None
    unit: Unit | None = None
    whole: str = ""


@dataclass(frozen=True)
class Group:
    """A tuple, point or interval: order and brackets count."""

    opening: str
    closing: str
    items: tuple["Form", ...]


@dataclass(frozen=True)
class Many:
    """Several answers; order does not count. `braced` where written as a set."""

    items: tuple["Form", ...]
    braced: bool = False


@dataclass(frozen=True)
class Union:
    """A union of intervals or sets; order does not count."""

    items: tuple["Form", ...]


@dataclass(frozen=True)
class Matrix:
    """Rows of a matrix or vector."""

    rows: tuple[tuple["Form", ...], ...]


@dataclass(frozen=True)
class Relation:
    """`a = b = c`, `2 < x \\le 3`: the members and the signs between them."""

    members: tuple["Form", ...]
    signs: tuple[str, ...]
    texts: tuple[str, ...]


Form = Atom | Words | Group | Many | Union | Matrix | Relation

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
_SIGN = re.compile(r"\\(?:le|ge|ne|approx|equiv|in|lt|gt)(?![a-zA-Z])|[=<>]")
_NAME = re.compile(
    r"\\?[a-zA-Z]+(?:_\{?[\w,]+\}?)?'*(?:\([\w, \\]*\))?"  # x, a_n, f(x), \theta
    r"|\\(?:text|overline)\{[^{}]*\}"
    r"|(?:[a-zA-Z](?:_\w)?|\\angle [A-Z]+)(?:\s*[+\-]\s*[a-zA-Z](?:_\w)?)*"
)
_SYMBOL = re.compile(r"\\?[a-zA-Z]+(?:_\w)?(?:\(\\?[a-zA-Z]+\))?")
_PLUS_MINUS = re.compile(r"\\pm(?![a-zA-Z])")
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
    text = _strip_braces(_LEAD.sub("", text.strip()))
    if depth > 12:
        return Atom(text)
    if _ALL_REALS.fullmatch(text):
        return Group("(", ")", (Atom("-\\infty"), Atom("\\infty")))
    words = read_words(text)
    if words is not None:
        return _meant(words)
    number = read_number(text)
    if number is not None:
        return Atom(text, number)
    quantity = _read_quantity(text)
    if quantity is not None:
        return quantity
    rest, unit = strip_unit(text)
    if unit is not None and (number := read_number(rest)) is not None:
        return Atom(rest, number, unit, text if unit.letters else "")
    for reader in (_read_list, _read_relation, _read_union, _read_enclosed, _read_matrix):
        form = reader(text, depth + 1)
        if form is not None:
            return form
    if unit is not None:
        inner = _read(rest, depth + 1)
        if isinstance(inner, Atom):
            return Atom(inner.text, inner.number, unit, text if unit.letters else "")
        return inner
    return Atom(text, None, None)


def _strip_braces(text: str) -> str:
    while text.startswith("{") and braced_end(text, 0) == len(text):
        text = text[1:-1].strip()
    return text


def _meant(words: Words) -> Form:
    """`no solution` is the empty set, and `four` is 4; any other text stands for itself."""
    if NOTHING.fullmatch(words.text):
        return Many((), braced=True)
    if words.text in NUMBERS:
        value = NUMBERS.index(words.text)
        return Atom(str(value), Number(Fraction(value)))
    return words


def _read_quantity(text: str) -> Atom | None:
    """`1 hour 30 minutes`, `5 feet, 6 inches`: a sum in the last, the smallest of its units."""
    if not text[:1].isdecimal() or text[-1].isdecimal():
        return None
    written = [match.group(1) for match in _QUANTITY.finditer(text)]
    if not 2 <= len(written) <= 4 or _QUANTITY.sub("", text).strip():
        return None
    parts = [(read_number(rest), unit) for rest, unit in map(strip_unit, written)]
    if any(number is None or unit is None or not unit.kind for number, unit in parts):
        return None
    sizes = [unit.factor for _, unit in parts]
    if len({unit.kind for _, unit in parts}) > 1 or sizes != sorted(set(sizes), reverse=True):
        return None
    value = sum(number.value * size for (number, _), size in zip(parts, sizes, strict=True))
    value /= sizes[-1]
    return Atom(rf"\frac{{{value.numerator}}}{{{value.denominator}}}", Number(value), parts[-1][1])


def _read_list(text: str, depth: int) -> Form | None:
    """Parts between top-level semicolons, or else commas; ± stands for two."""
    parts = split_top(text, ";")
    if len(parts) == 1:
        parts = split_commas(text)
    parts = [part.strip() for part in parts if part.strip()]
    if len(parts) == 1:
        both = _both_signs(parts[0])
        return Many(tuple(_read(part, depth) for part in both)) if len(both) == 2 else None
    if not parts or len(parts) > MAX_ITEMS:
        return None
    both_each = [sign for part in parts for sign in _both_signs(part)]
    return Many(_shared_unit([_read(part, depth) for part in both_each]))


def _both_signs(text: str) -> list[str]:
    """`a \\pm b` as its two values. Several ± stay one expression: they may or may not agree."""
    if text.count("\\mp") == 1 and "\\pm" not in text:
        text = text.replace("\\mp", "\\pm")
    if len(_PLUS_MINUS.findall(text)) != 1 or "\\mp" in text:
        return [text]
    if len(split_commas(text)) > 1 or text.startswith(("(", "[", "\\{")):
        return [text]
    return [
        _PLUS_MINUS.sub(lambda _: "+", text).lstrip("+ "),
        _PLUS_MINUS.sub("-", text),
    ]


def _shared_unit(items: list[Form]) -> tuple[Form, ...]:
    """`3, 4 \\text{ cm}`: the last unit stands for all."""
    last = items[-1]
    if isinstance(last, Atom) and last.unit is not None:
        return tuple(
            Atom(item.text, item.number, last.unit)
            if isinstance(item, Atom) and item.unit is None
            else item
            for item in items
        )
    return tuple(items)


def _read_relation(text: str, depth: int) -> Form | None:
    """Relations at the top level; `x \\in S` is S, bounds on one name are intervals."""
    spans = list(_SIGN.finditer(text))
    if not spans:
        return None
    outside = _outside(text)
    spans = [span for span in spans if outside[span.start()]]
    if not spans or len(spans) > 7:
        return None
    texts, start = [], 0
    for span in spans:
        texts.append(text[start : span.start()].strip())
        start = span.end()
    texts.append(text[start:].strip())
    signs = tuple(_plain_sign(span.group()) for span in spans)
    if not all(texts[1:]):
        return None
    if signs == ("\\in",):
        return _read(texts[1], depth)
    bounds = _bounds([texts[0] or "x", *texts[1:]], signs, depth)  # `\\ge 3`
    if bounds is not None:
        return bounds
    if not texts[0]:
        texts, signs = texts[1:], signs[1:]
        if not signs:
            return _read(texts[0], depth)
    return Relation(tuple(_read(part, depth) for part in texts), signs, tuple(texts))


def _plain_sign(sign: str) -> str:
    return {"\\lt": "<", "\\gt": ">", "\\equiv": "="}.get(sign, sign)


def _outside(text: str) -> list[bool]:
    """For each character, whether it stands outside all brackets."""
    depth, outside = 0, []
    for character in text:
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        outside.append(depth == 0)
    return outside


_LESS, _MORE = ("<", "\\le"), (">", "\\ge")


def _bounds(texts: list[str], signs: tuple[str, ...], depth: int) -> Form | None:
    """`-2 \\le x < 7`, `x > 3`, `x \\ne 1` as intervals; None where it is anything else."""
    infinity, minus = Atom("\\infty"), Atom("-\\infty")
    if len(texts) == 3 and _SYMBOL.fullmatch(texts[1]):
        low, high = texts[0], texts[2]
        opening, closing = signs
        if set(signs) <= set(_MORE):
            low, high, opening, closing = high, low, closing, opening
        elif not set(signs) <= set(_LESS):
            return None
        open_low = "(" if opening in "<>" else "["
        open_high = ")" if closing in "<>" else "]"
        return Group(open_low, open_high, (_read(low, depth), _read(high, depth)))
    if len(texts) != 2:
        return None
    name, bound = texts
    sign = signs[0]
    if not _SYMBOL.fullmatch(name):
        name, bound = bound, name
        sign = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}.get(sign, sign)
    if not _SYMBOL.fullmatch(name) or re.search("[a-zA-Z]", key_letters(bound)):
        return None
    value = _read(bound, depth)
    if sign in _LESS:
        return Group("(", ")" if sign == "<" else "]", (minus, value))
    if sign in _MORE:
        return Group("(" if sign == ">" else "[", ")", (value, infinity))
    if sign == "\\ne":
        return Union((Group("(", ")", (minus, value)), Group("(", ")", (value, infinity))))
    return None


def key_letters(text: str) -> str:
    """The text without LaTeX commands: what letters are left are names."""
    return re.sub(r"\\[a-zA-Z]+", "", text)


def _read_union(text: str, depth: int) -> Form | None:
    parts = re.split(r"\\cup(?![a-zA-Z])", text)
    if len(parts) < 2 or len(parts) > MAX_ITEMS or not all(part.strip() for part in parts):
        return _read_complement(text, depth)
    return Union(tuple(_read(part, depth) for part in parts))


def _read_complement(text: str, depth: int) -> Form | None:
    """`\\mathbb{R} \\setminus \\{1, 2\\}` with numbers as the union of the intervals between."""
    match = re.fullmatch(
        r"\(?(?:\\mathbb\{R\}|\(-\\infty, ?\\infty\))\s*(?:\\setminus|-|\\)\s*\\\{(.*)\\\}\)?",
        text,
    )
    if match is None:
        return None
    points = [_read(part, depth) for part in split_top(match.group(1), ",")]
    if not all(isinstance(p, Atom) and p.number is not None for p in points):
        return None
    points = sorted(points, key=lambda point: point.number.value)
    ends = [Atom("-\\infty"), *points, Atom("\\infty")]
    return Union(tuple(Group("(", ")", (a, b)) for a, b in zip(ends, ends[1:], strict=False)))


def _read_enclosed(text: str, depth: int) -> Form | None:
    """A set in braces, or a tuple or interval in brackets, around the whole text."""
    if text.startswith("\\{") and text.endswith("\\}"):
        inner = text[2:-2].strip()
        builder = _BUILDER.fullmatch(inner)
        if builder is not None:  # {x | x > 3}
            form = _read(builder.group(2), depth)
            return form if isinstance(form, (Group, Union)) else None
        if "|" in inner or ":" in inner or "\\}" in inner:
            return None
        if not inner:
            return Many((), braced=True)
        form = _read(inner, depth)
        return Many(form.items if isinstance(form, Many) else (form,), braced=True)
    if text == "\\emptyset":
        return Many((), braced=True)
    if text[:1] not in ("(", "[") or text[-1:] not in (")", "]") or not _closes_last(text):
        return None
    parts = split_commas(text[1:-1])
    if len(parts) == 1:
        parts = split_top(text[1:-1], ",")  # "(100,101)" is a point
    parts = [part.strip() for part in parts]
    if len(parts) == 1 and text[0] == "(" and text[-1] == ")":
        return _read(text[1:-1], depth)
    if not all(parts) or len(parts) > MAX_ITEMS:
        return None
    return Group(text[0], text[-1], tuple(_read(part, depth) for part in parts))


def _closes_last(text: str) -> bool:
    """Whether the first bracket is closed by the last character."""
    depth = 0
    for at, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth == 0:
                return at == len(text) - 1
    return False


def _read_matrix(text: str, depth: int) -> Form | None:
    transposed = _TRANSPOSED.search(text)
    if transposed is not None:
        form = _read(text[: transposed.start()], depth)
        if isinstance(form, Group):
            return form  # a tuple stands for a column anyway
        even = isinstance(form, Matrix) and len(set(map(len, form.rows))) == 1
        return Matrix(tuple(zip(*form.rows, strict=True))) if even else None
    scalar, begin, _ = text.partition("\\begin")
    if begin and scalar.strip(" ([") and text.endswith("}"):
        factor = scalar.strip().removesuffix("\\cdot").removesuffix("\\times")
        factor = "-1" if factor == "-" else factor
        form = _read_matrix(text[len(scalar) :], depth)
        if not isinstance(form, Matrix) or not isinstance(_read(factor, depth), Atom):
            return None
        return Matrix(tuple(tuple(_times(factor, cell) for cell in row) for row in form.rows))
    match = _ENVIRONMENT.fullmatch(re.sub(r"^[(\[]\s*(?=\\begin)|(?<=\})\s*[)\]]$", "", text))
    if match is None or "\\begin" in match.group(2):
        return None
    rows = [row for row in re.split(r"\\\\", match.group(2).replace("\\hline", "")) if row.strip()]
    cells = [row.split("&") for row in rows]
    if not cells or len(cells) * max(map(len, cells)) > MAX_ITEMS:
        return None
    return Matrix(tuple(tuple(_read(cell, depth) for cell in row) for row in cells))


def _times(factor: str, cell: Form) -> Form:
    return Atom(rf"({factor})\cdot({cell.text})") if isinstance(cell, Atom) else cell


def is_name(text: str) -> bool:
    """Whether a relation's left side only names the answer: `x`, `f(x)`, `m+n`, `\\text{Area}`."""
    return _NAME.fullmatch(key(text)) is not None or _NAME.fullmatch(text) is not None
