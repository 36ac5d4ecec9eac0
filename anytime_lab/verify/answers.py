"""Find the answer that a text gives: the box after the forced header, or what stands for it.

Every scan is linear in the text, so a hostile text costs what an ordinary one of its length does.
"""

import re

HEADER = "**Final Answer**"
THINK_CLOSE = "</think>"
SEARCH_CHARS = 20_000  # a summary is some 128 tokens; what lies further off is no answer

_BOX = re.compile(  # and its options: \framebox[3cm][c]{...}
    r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])[ \t\r\n]{0,20}(?:\[[^\[\]{}]{0,40}\])*"
)
_BARE_BOX = re.compile(r"[^\s{}$\\,;.]+(?:\.\d+)?")
_BRACE = re.compile(r"\\.|[{}]", re.S)  # an escaped brace is none
_JOINT = re.compile(r"[\s$,;&.]*(?:\\(?:text|mathrm)\{)?\s*(?:and|or)?\s*\}?[\s$,;\\()\[\]]*")
_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_FORMULA = re.compile(
    r"\$\$(?P<display>[^$]{1,2000})\$\$"
    r"|\\\[(?P<bracket>(?:[^\\]|\\(?![\[\]()])){1,2000})\\\]"
    r"|\\\((?P<round>(?:[^\\]|\\(?![\[\]()])){1,2000})\\\)"
    # As pandoc reads it: no space inside the dollars, no digit after; "$5 and $6" are amounts.
    r"|(?<!\\)\$(?P<dollar>(?! )(?:[^$\\\n]|\\[^\n]){1,2000})(?<! )\$(?!\d)"
)
_NUMBER = re.compile(
    r"(?P<point>(?<![\w.])[(\[][-+−–]?[\d./∞]+(?:,\s?[-+−–]?[\d./∞]+)+[)\]])"
    r"|(?<![\w.])(?P<number>[-+−–]?[$€£¥]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"
    r"(?:[eE][-+]?\d{1,4}(?!\w)|\s?(?:×|x|\*|\\times)\s?10\^\{?[-+]?\d{1,4}\}?)?"
    r"(?:\s?/\s?\d+(?:\.\d+)?)?\s?\\?%?"
    r"|[-+−–]?\.\d+%?)"
)
_WORD = re.compile(
    r"\\[a-zA-Z]+(?:\{[a-zA-Z ]{0,40}\})?"
    r"|(?<![a-zA-Z])(?!(?:sqrt|sin|cos|tan|log|exp|mod|and)(?![a-zA-Z]))([a-zA-Z]{3,})"
)
_LEAD = re.compile(
    r"^(?:so|thus|hence|therefore)?,?\s*"
    r"(?:(?:the\s+)?(?:final\s+)?answers?\s*(?:is|are|:|=)\s*:?|(?:it|this|that)\s+(?:is|equals)\b"
    r"|(?:最终)?答案(?:是|为|：|:)+)\s*",
    re.I,
)
# What is said to be the answer, up to the end of its sentence.
_STATED = re.compile(
    r"\banswers?\*{0,2}\s*(?:is|are|:|=)[\s*:]{0,9}(?P<all>[^\n]{1,300}?)(?=\.(?:\s|$)|。|\n|$)",
    re.I,
)
_IS = re.compile(r"\b(?:is|are|equals)\b:?")
# Dollars that open a formula and do not close it. `$5` is an amount.
_OPEN_DOLLAR = re.compile(r"\$\$[^$]*\Z|(?<![\\$])\$(?!\d[\d,.]*(?:\s[^$\\]*)?\Z)[^$]*\Z")
_BRACKETS = (("\\[", "\\]"), ("\\(", "\\)"))
_CLOSED = re.compile(r"\\\$|\$\$[^$]+\$\$|(?<!\$)\$[^$]+\$(?!\$)")
# What takes back, in its sentence, a number that stands in no box; and what it is only a part of.
_UNSURE = re.compile(
    r"\b(?:not|cannot|never|except|unless|unknown|wrong|incorrect|maybe|perhaps|wait|options?"
    r"|choices?|steps?|pages?|problems?|questions?)\b|n['’]t\b|\bat (?:most|least)\b"
    r"|\b(?:less|more|greater|smaller|larger|fewer) than\b",
    re.I,
)
_TAKEN_BACK = re.compile(
    r"[^\w.]*(?:is|was|isn['’]t|would be)\s+(?:not|wrong|incorrect|false)\b", re.I
)
_PART = re.compile(r"(?:[+/^×·]|(?<!\*)\*|(?<=\w)\s?[-−]|\bto)\s*\Z")
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n")


def answer_region(
    text: str, header: str | None = HEADER, think_close: str | None = THINK_CLOSE
) -> str:
    """What follows the forced header (BRPO §5), at most `SEARCH_CHARS` characters of it.

    A header inside the thinking is not the forced one: it is looked for after the think-close
    marker, the first one there. Where no marker is used, the last header of the text counts.
    A text without the header is searched from the marker on, or from its start.
    """
    start = 0
    marked = think_close is not None and think_close in text
    if marked:
        start = text.index(think_close) + len(think_close)
    if header:
        at = text.find(header, start) if marked else text.rfind(header)
        if at >= 0:
            start = at + len(header)
    return text[start : start + SEARCH_CHARS]


def find_answer(
    text: str, header: str | None = HEADER, think_close: str | None = THINK_CLOSE
) -> str | None:
    """The answer that a text gives, or None.

    The first complete box after the forced header (`\\boxed`, `\\fbox`, `\\framebox`, nested
    braces); boxes joined by nothing but a comma, "and" or "or" are one answer. Without any box, the
    last formula or number of the first paragraph, unless its sentence takes it back ("not", "less
    than"); without those, its first line. A box or formula that is not closed is cut-off text,
    never an answer.

    Args:
        text: Thinking as cut, forced text and summary, decoded; or any text with an answer.
        header: The forced summary header; None where the text has none.
        think_close: The think-close marker; None where the model has none.
    """
    region = answer_region(text, header, think_close)
    if (boxed := find_boxed(region)) is not None:
        return boxed
    paragraph = _first_paragraph(region)
    unclosed = _CLOSED.sub(" ", paragraph)
    if _OPEN_DOLLAR.search(unclosed) or any(
        unclosed.rfind(opening) > unclosed.rfind(closing) for opening, closing in _BRACKETS
    ):
        return None
    stated = _STATED.search(paragraph)
    named = _last_of(stated.group("all")) if stated else None
    return named or _last_of(paragraph) or first_line(region)


def find_boxed(region: str) -> str | None:
    """Content of the first complete box, with any that directly follow, joined by ", "."""
    found: list[str] = []
    # Where each brace that is closed closes, in one pass: many open boxes cost no more than one.
    closings, open_braces, end = {}, [], 0
    for match in _BRACE.finditer(region):
        if match.group() == "{":
            open_braces.append(match.start())
        elif match.group() == "}" and open_braces:
            closings[open_braces.pop()] = match.start()
    for match in _BOX.finditer(region):
        if match.start() < end:
            continue  # a box inside the box already taken
        if found and _JOINT.match(region, end).end() < match.start():
            break
        start = match.end()
        bare = _BARE_BOX.match(region, start)
        if start in closings:
            value, end = region[start + 1 : closings[start]].strip(), closings[start] + 1
        elif bare and bare.end() < len(region):  # one that runs to the end may be cut off
            value, end = bare.group(), bare.end()
        elif found:
            break
        else:
            continue
        if value and value not in found:
            found.append(value)
    return ", ".join(found) or None


def first_line(region: str) -> str | None:
    """The first line that is not blank, without emphasis and a lead such as "The answer is"."""
    for line in _BOX.split(region)[0].splitlines():  # before a box that is not closed
        line = _LEAD.sub("", line.strip().strip("*").strip()).strip().strip("*").strip()
        if line.strip("#*_`$.: -"):
            return line.removesuffix(".").strip() or None
    return None


def _first_paragraph(region: str) -> str:
    """The first paragraph; with the next one where it only announces it ("… is:")."""
    parts = [part for part in _PARAGRAPH.split(_BOX.split(region)[0].strip(), 2) if part]
    announces = parts and parts[0].rstrip("* \n").endswith((":", " is", " is given by", " ="))
    return " ".join(parts[: 2 if announces else 1])


def _last_of(paragraph: str) -> str | None:
    """The last formula or number, with those that it is listed with; the whole, or what follows
    the last "is", where that is a formula without delimiters."""
    line = _LEAD.sub("", paragraph.strip().strip("*#").strip()).removesuffix("。")
    line = line.removesuffix(".").strip()
    if not line:
        return None
    for part in (line, line[[0, *(m.end() for m in _IS.finditer(line))][-1] :]):
        plain = not any(sign in part for sign in ("\n", "$", "\\(", "\\[")) and len(part) <= 2000
        if plain and not any(m.group(1) for m in _WORD.finditer(part)):
            return part.strip("*` ") or None
    formulas = [*_FORMULA.finditer(paragraph)]
    numbers = [*_NUMBER.finditer(paragraph, formulas[-1].end() if formulas else 0)]
    listed = _last_listed(paragraph, numbers or formulas)
    if listed:
        before = _SENTENCE.split(paragraph[: listed[0].start()])[-1]
        taken_back = _UNSURE.search(before) or _TAKEN_BACK.match(paragraph, listed[-1].end())
        if taken_back or (numbers and _PART.search(before)):
            return None
    return ", ".join(m[m.lastgroup].strip() for m in listed) or None


def _last_listed(paragraph: str, found: list[re.Match[str]]) -> list[re.Match[str]]:
    """The last match; with "and" or "or" before it, those that it is listed with, too."""
    listed = found[-1:]
    for before in reversed(found[:-1]):
        joint = _JOINT.fullmatch(paragraph, before.end(), listed[0].start())
        # "If $n=3$, $12$ is" is no list.
        if not joint or not re.search(",|and|or" if len(listed) > 1 else "and|or", joint.group()):
            break
        listed = [before, *listed]
    return listed
