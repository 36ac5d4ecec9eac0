"""Bring an answer to one way of writing: Unicode to LaTeX, synonyms to one, decoration off.

Nothing is evaluated here, and nothing that could change a value is removed.
"""

import re
import unicodedata

MAX_CHARS = 1000  # of one answer; a longer one is no answer (the longest of MATH has 160)
MAX_DEPTH = 40  # of nested brackets

_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni")
_SUBSCRIPT = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙ", "0123456789+-()n")
_VULGAR = {
    "½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5),
    "⅗": (3, 5), "⅘": (4, 5), "⅙": (1, 6), "⅚": (5, 6), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8),
    "⅞": (7, 8), "⅐": (1, 7), "⅑": (1, 9), "⅒": (1, 10),
}  # fmt: skip
_SIGNS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "﹣": "-", "×": r"\times ", "·": r"\cdot ",
    "⋅": r"\cdot ", "∙": r"\cdot ", "∗": "*", "÷": r"\div ", "∕": "/", "⁄": "/", "π": r"\pi ",
    "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ", "≤": r"\le ", "≥": r"\ge ",
    "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ", "∓": r"\mp ",
    "°": r"^\circ ", "º": r"^\circ ", "∈": r"\in ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}",
    "∖": r"\setminus ", "⟨": "(", "⟩": ")", "′": "'", "’": "'", "‘": "'", "“": '"', "”": '"',
    "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ", "ε": r"\epsilon ",
    "θ": r"\theta ", "λ": r"\lambda ", "μ": r"\mu ", "µ": r"\mu ", "ρ": r"\rho ",
    "σ": r"\sigma ", "τ": r"\tau ", "φ": r"\phi ", "ω": r"\omega ", "Ω": r"\Omega ",
    "Δ": r"\Delta ", "½": r"\frac{1}{2}", "Å": r"\AA ", "Å": r"\AA ",
    "¢": " cents",
    "、": ", ", "，": ", ", "；": "; ", "。": ".",
}  # fmt: skip
_ROOT = re.compile(r"√\s*(?:\(([^()]{1,200})\)|(\d+(?:\.\d+)?|[a-zA-Zπ]))")
_UP = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ]+")
_DOWN = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙ]+")
_COMMAND_END = r"(?![a-zA-Z])"
_TEXT_COMMAND = re.compile(
    r"\\(?:text(?:rm|bf|it|normal|sf|tt|sc|up)?|mbox|hbox|mathrm|mathbf|mathit|mathsf|mathtt"
    r"|boldsymbol|bm|operatorname\*?)\s*(?=\{)"
)
_MEASURED_TEXT = re.compile(r"^\s*\\text\{\s*([-+]?(?:\d|\.\d)[^{}]*)\}\s*$")  # \text{2.5 cm}
_CASES = re.compile(r"^\s*\\begin\{(?:cases|aligned|gathered)\}([^&]*)\\end\{\w+\}\s*$")
_OLD_FONT = re.compile(r"\{?\\(?:rm|bf|it)\s+([a-zA-Z]{1,20})\s*\}?")
_DROPPED = re.compile(
    r"\\(?:left|right|middle|bigl?|bigr?|Bigl?|Bigr?|biggl?|biggr?|Biggl?|Biggr?|displaystyle"
    r"|textstyle|limits|nolimits|mathord|hfill|strut|mathstrut|boxed|fbox|framebox|underline"
    r"|tiny|small|large|Large|LARGE|huge|Huge)"
    + _COMMAND_END
    + r"|\\phantom\s*(?:\{[^{}]*\}|[^\s{}])|\\[hv]space\*?\{[^{}]*\}|\\!|\\label\{[^{}]*\}"
    r"|\\(?:text)?color\s*\{[^{}]*\}"
)
_RUN_OF_SPACES = re.compile(r"\s+")  # patterns with `\s*` on both sides are slow on long ones
_SPACE = re.compile(r"(?<!\\)\\(?:quad|qquad|enspace|thinspace|;|:|,|>| |\n)|~")
_SYNONYMS = [
    (re.compile(pattern + (_COMMAND_END if pattern.rstrip(")")[-1].isalpha() else "")), replacement)
    for pattern, replacement in [
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\[dt]binom", r"\\binom"),
        (r"\\(?:leqslant|leqq|leq)", r"\\le"),
        (r"\\(?:geqslant|geqq|geq)", r"\\ge"),
        (r"\\neq", r"\\ne "),
        (r"\\not\s*=", r"\\ne "),
        (r"\\lt", "<"),
        (r"\\gt", ">"),
        (r"\\(?:varnothing|O)", r"\\emptyset"),
        (r"\{\s*(\w+)\s*\\choose\s*(\w+)\s*\}", r"\\binom{\1}{\2}"),
        (r"\\lbrace", r"\\{"),
        (r"\\rbrace", r"\\}"),
        (r"\\lbrack", "["),
        (r"\\rbrack", "]"),
        (r"\\(?:langle|lparen)", "("),
        (r"\\(?:rangle|rparen)", ")"),
        (r"\\(?:lvert|rvert|vert|mid)", "|"),
        (r"\\(?:backslash)", r"\\setminus"),
        (r"\\bigcup", r"\\cup"),
        (r"\\varphi", r"\\phi"),
        (r"\\varepsilon", r"\\epsilon"),
        (r"\\(?:simeq|sim|thickapprox|approxeq)", r"\\approx"),
        (r"\\colon", ":"),
        (r"\\log\s*_\s*(?:e|\{\s*e\s*\})", r"\\ln"),
        (r"\\mathring\s*\{\s*A\s*\}|\\(?:AA|angstrom)", r"\\AA"),
        (r"\\degree", r"^\\circ"),
        (r"\\ast", "*"),
        (r"\\(?:ldots|dots|cdots)", "..."),
        (r"\\lg", r"\\log"),
        (r"\\dot\s*\{?(\d)\}?(\d*)\\dot\s*\{?(\d)\}?", r"\\overline{\1\2\3}"),
        (r"(?<=\d)\s*(?:\\text\{\s*to\s*\}|\bto\b)\s*(?=\d)", ":"),
        (r"\\(?:newline|nonumber|par)", " "),
        (r"\\mathbb\s*R", r"\\mathbb{R}"),
        (r"(?<![a-zA-Z\\])(?:infinity|infty|Infinity|inf)", r"\\infty"),
        (r"(?<![a-zA-Z\\])(?:pi|Pi)", r"\\pi"),
        (r"(?<![a-zA-Z\\])sqrt\s*\(([^()]{1,400})\)", r"\\sqrt{\1}"),
        (r"(?<![a-zA-Z\\])sqrt(?=\s*[\d{])", r"\\sqrt"),
    ]
]
_WITHOUT_COMMANDS = [pair for pair in _SYNONYMS if not pair[0].pattern.startswith(r"\\")]
_PLAIN = (
    ("<=", r"\le "),
    (">=", r"\ge "),
    ("!=", r"\ne "),
    ("**", "^"),
    ("+/-", r"\pm "),
    ("{,}", ","),
    (r"\%", "%"),
    (r"\#", "#"),
    (r"\&", " and "),
    ("^{\\circ}", "^\\circ"),
    ("^{\\circ }", "^\\circ"),
    ("^ \\circ", "^\\circ"),
)
_ARGUMENT = r"\s*(\d|[a-zA-Z]|\\pi(?![a-zA-Z])|\\[a-zA-Z]+(?=[\s\d}]))"
_BRACED = r"\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"
_MISSING_BRACES = (
    (
        re.compile(r"\\(frac|binom)(?![a-zA-Z])" + _ARGUMENT + _ARGUMENT),
        r"\\\1{\2}{\3}",
    ),
    (re.compile(r"\\(frac|binom)(?![a-zA-Z])" + _ARGUMENT + r"\s*(?=\{)"), r"\\\1{\2}"),
    (re.compile(r"\\(frac|binom)(?![a-zA-Z])" + _BRACED + _ARGUMENT), r"\\\1{\2}{\3}"),
    (re.compile(r"\\sqrt(?![a-zA-Z])" + _ARGUMENT), r"\\sqrt{\1}"),
    (re.compile(r"\\(frac|sqrt)(?![a-zA-Z])\s+(?=[{\[])"), r"\\\1"),
    (re.compile(r"(\\frac\{[^{}]*\})\s+(?=\{)"), r"\1"),
)
_SMALL_TEXT = re.compile(r"\\text\{\s*(\\?[a-zA-Z0-9.,%()+\-]|\d+(?:\.\d+)?|)\s*\}")
_JOINING_TEXT = re.compile(
    r"\s*,?\s*(?:\\text\{\s*,?\s*(?:and|or)\s*\}"
    r"|(?<![\w\\])(?:and|or)(?!\w| (?:more|less|an?)\b))\s*"
)
_ORDINAL = re.compile(r"(?<=\d)\s*(?:\^\s*\{?)?\s*(?:\\text\{\s*)?(?:st|nd|rd|th)[\s}]*$")
_IN_BASE = re.compile(  # 101 \text{ base } 2
    r"(?<=\w)\s*\\text\{\s*\(?(?:in )?base\s*\}?\s*(\d{1,2})\)?\s*\}?$"
)
_BOUND = r"(?:[<>]|\\[lg]e(?![a-zA-Z]))"
_BOTH_BOUNDS = re.compile(  # x > 1 and x < 3
    rf"([a-zA-Z])\s*({_BOUND})([^<>=,]{{1,60}}?)(?:\\text\{{\s*and\s*\}}|(?<!\w)and(?!\w))\s*"
    rf"\1\s*({_BOUND})([^<>=,]{{1,60}})$"
)
_CONDITION = re.compile(  # x = 2k\pi, k \in \mathbb{Z}
    r"(?<=\S)\s*[,;]?\s*\(?(?:\\text\{\s*,?\s*(?:where|for|with)[^{}]{0,40}\}\s*)?"
    r"[a-zA-Z]\s*\\in\s*\\mathbb\s?\{?[ZN]\}?(?:\^[+*]|_\+)?\s*\)?$"
)
_OUTWARD = re.compile(  # ]1, 2[ as the French write it
    r"(?P<before>^|\\cup\s*|\\in\s*)(?P<open>[\[\]])(?P<in>[^\[\]]{1,100})(?P<close>[\[\]])"
)
_PERCENT = re.compile(
    r"\s*(?:\\text\{\s*(?:percent|per cent|pct)\s*\}|(?<![a-zA-Z])(?:percent|pct)(?![a-zA-Z]))"
)
_SCIENTIFIC = re.compile(r"(?<![a-zA-Z\d.])(\d+(?:\.\d*)?|\.\d+)[eE]\{?([-+]?\d{1,4})\}?(?![\w.])")
_COMMA_IN_NUMBER = re.compile(r"(?<=\d)(?:,\\!|\{,\}(?:\\!)?)\s*(?=\d{3})")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d)")
_GROUPED = re.compile(r"(?<![\d.,{])\d{1,3}(?:(?:\\,|\\ | )\d{3})+(?!\d)")  # 10\,000
_KEPT_SPACE = re.compile(r"(\\[a-zA-Z]+ (?=\s*[a-zA-Z])|(?<=\d) (?=\s*\d))\s*|\s+")
_CLOCK = re.compile(  # `9 a.m.`, `9:30\text{ pm}`, but not the product `9am`
    r"(?<![\w.:])(\d{1,2}(?::\d\d)?)(?:\s|(?<=:\d\d)|(?=\\text))\s*(?:\\text\{)?\s*"
    r"(?:([apAP])\.?\s?[mM]\.?|(noon|midnight))\s*\}?$"
)
_SINGLE_BRACE = re.compile(r"([\^_])\s*\{\s*([a-zA-Z0-9])\s*\}")
_WHOLE = (
    re.compile(r"\$\$(?P<in>.*)\$\$", re.S),
    re.compile(r"(?<!\\)\$(?P<in>(?:[^$\\]|\\.)*)\$", re.S),
    re.compile(r"\\\((?P<in>.*)\\\)", re.S),
    re.compile(r"\\\[(?P<in>.*)\\\]", re.S),
    re.compile(r"\*\*(?P<in>.*)\*\*", re.S),
    re.compile(r"`(?P<in>.*)`", re.S),
    re.compile(r"\\begin\{(equation|align|gather|math)\*?\}(?P<in>.*)\\end\{\1\*?\}", re.S),
)
_WHOLE_BOX = re.compile(r"\\(?:boxed|fbox|framebox|ensuremath|displaylines)\s*(?=\{)")


class UnreadableError(ValueError):
    """The text is no answer that a grader should spend time on."""


def clean(text: str) -> str:
    """The same answer in one way of writing.

    Raises:
        UnreadableError: Longer than `MAX_CHARS`, or brackets nested deeper than `MAX_DEPTH`.
    """
    if len(text) > MAX_CHARS:
        raise UnreadableError("too long")
    text = _RUN_OF_SPACES.sub(" ", _fold_unicode(text))
    if _depth(text) > MAX_DEPTH:
        raise UnreadableError("unparsable")
    text = _unwrap(text)
    text = _TEXT_COMMAND.sub(r"\\text", text)
    text = _MEASURED_TEXT.sub(r"\1", text)
    text = _CASES.sub(lambda m: ", ".join(re.split(r"\\\\", m.group(1))), text)
    text = _OLD_FONT.sub(r"\\text{\1}", text)
    text = _COMMA_IN_NUMBER.sub("", text).replace(r"\text{:}", ":")
    text = _DROPPED.sub("", text)
    text = _GROUPED.sub(lambda m: re.sub(r"[^\d]", "", m.group()), text)
    text = _RUN_OF_SPACES.sub(" ", _SPACE.sub(" ", text))
    for pattern, replacement in _SYNONYMS if "\\" in text else _WITHOUT_COMMANDS:
        text = pattern.sub(replacement, text)
    for old, new in _PLAIN:
        text = text.replace(old, new)
    text = _PERCENT.sub("%", text)
    if "base" in text:
        text = _IN_BASE.sub(r"_{\1}", text)
    text = _ORDINAL.sub("", text)
    text = _BOTH_BOUNDS.sub(_between, text)
    text = _JOINING_TEXT.sub(", ", text)
    text = _SMALL_TEXT.sub(r" \1", text)
    for pattern, replacement in _MISSING_BRACES:
        text = pattern.sub(replacement, text)
    text = _SCIENTIFIC.sub(r"\1\\times 10^{\2}", text)
    text = _SINGLE_BRACE.sub(r"\1\2", text)
    text = re.sub(r"(?<!\\)\$", "", text)
    text = _CLOCK.sub(_half_of_day, text)
    text = _OUTWARD.sub(_inward, _CONDITION.sub("", text))
    return _trim(re.sub(r"\s+", " ", text))


def key(text: str) -> str:
    """Cleaned text without spaces, but for those that end a command: equal keys, equal answers."""
    return _KEPT_SPACE.sub(lambda m: m.group(1) or "", text.strip())


def split_top(text: str, separators: str) -> list[str]:
    """Split at separator characters that stand outside all brackets."""
    parts, depth, start, at = [], 0, 0, 0
    while at < len(text):
        character = text[at]
        if character == "\\" and at + 1 < len(text):
            if text[at + 1] in "{}":
                depth += 1 if text[at + 1] == "{" else -1
            at += 2
            continue
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif depth == 0 and character in separators:
            parts.append(text[start:at])
            start = at + 1
        at += 1
    parts.append(text[start:])
    return parts


def split_commas(text: str) -> list[str]:
    """Split at commas outside all brackets, but not within numbers such as `1,000`.

    Without a space after any comma `1,000` is still one number if that leaves a single part;
    otherwise all commas part.
    """
    parts = split_top(without_separators(text), ",")
    spaced = any(part[:1].isspace() for part in parts[1:])
    return parts if len(parts) == 1 or spaced else split_top(text, ",")


def without_separators(text: str) -> str:
    """The text with `1,000` as `1000`."""
    return _THOUSANDS.sub(lambda m: m.group().replace(",", ""), text)


def braced_end(text: str, start: int) -> int:
    """Index after the brace that closes the one at `start`; -1 where none does."""
    depth, at = 0, start
    while at < len(text):
        if text[at] == "\\":
            at += 2
            continue
        if text[at] == "{":
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    return -1


def _fold_unicode(text: str) -> str:
    if text.isascii():
        return "".join(c if c >= " " or c in "\n\t" else "" for c in text)
    for character, (above, below) in _VULGAR.items():
        text = text.replace(character, rf"\frac{{{above}}}{{{below}}}")
    text = _ROOT.sub(lambda m: rf"\sqrt{{{m.group(1) or m.group(2)}}}", text)
    text = text.replace("√", r"\sqrt ")
    text = _UP.sub(lambda m: "^{" + m.group().translate(_SUPERSCRIPT) + "}", text)
    text = _DOWN.sub(lambda m: "_{" + m.group().translate(_SUBSCRIPT) + "}", text)
    folded = []
    for character in text:
        if character in _SIGNS:
            folded.append(_SIGNS[character])
        elif character.isascii():
            folded.append(character if character >= " " or character in "\n\t" else "")
        elif (digit := unicodedata.decimal(character, None)) is not None:
            folded.append(str(digit))
        elif unicodedata.category(character) in ("Cf", "Cc", "Cs", "Co", "Cn"):
            continue  # invisible: zero-width, control, lone surrogates
        else:
            # Full-width and mathematical letters become plain ones; the rest stays.
            folded.append(unicodedata.normalize("NFKC", character))
    return "".join(_SIGNS.get(c, c) for c in "".join(folded))


def _between(bounds: re.Match[str]) -> str:
    """`1 < x < 3` of two bounds that hold both; as they stand where they point the same way."""
    name, sign, bound, other_sign, other = bounds.groups()
    above, other_above = sign in (">", "\\ge"), other_sign in (">", "\\ge")
    if above == other_above:
        return bounds.group()
    if not above:
        sign, bound, other_sign, other = other_sign, other, sign, bound
    return f"{bound} {'<' if sign == '>' else chr(92) + 'le'} {name} {other_sign} {other}"


def _inward(interval: re.Match[str]) -> str:
    before, opening, inside, closing = interval.group("before", "open", "in", "close")
    if (opening, closing) == ("[", "]") or "," not in inside:
        return interval.group()
    return f"{before}{'(' if opening == ']' else '['}{inside}{')' if closing == '[' else ']'}"


def _half_of_day(clock: re.Match[str]) -> str:
    """A time with a.m. or p.m. as a unit."""
    hour, half, word = clock.groups()
    half = f"{half.lower()}m" if half else {"noon": "pm", "midnight": "am"}[word]
    return rf"{hour}\text{{ {half}}}"


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest


def _trim(text: str) -> str:
    """Spaces and sentence punctuation at the ends off."""
    text = text.strip()
    while text and text[-1] in ".,;:!?" and not text.endswith("..."):
        if text[-1] == "!" and not text[:-1].endswith(" "):
            break  # a factorial
        text = text[:-1].rstrip()
    return text.lstrip(":= ").strip()


def _unwrap(text: str) -> str:
    """Delimiters, emphasis and boxes around the whole text off, however often they are nested."""
    for _ in range(8):
        before = text
        text = text.strip()
        if text.endswith((".", ",", ";")) and not text.endswith("..."):
            text = text[:-1].rstrip()
        for pattern in _WHOLE:
            match = pattern.fullmatch(text)
            if match is not None:
                text = match.group("in")
                break
        box = _WHOLE_BOX.match(text)
        if box is not None and braced_end(text, box.end()) == len(text):
            text = text[box.end() + 1 : -1]
        if text == before:
            break
    return text
