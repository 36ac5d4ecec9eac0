"""Answers in words: prose, `\\text{...}` and the letters of choices."""

import re
from dataclasses import dataclass

# Texts that say that there is no answer, once folded.
NOTHING = re.compile(r"no (?:real |integer |such )?(?:solution|root)|empty(?: set)?")
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)
_CHOICE = re.compile(r"(?:\\text\{)?\s*\(?\s*([A-J])\s*(?:[).:]\s*\}?|\}\s*[).:]?)\s*(.*)", re.S)
_ALL_TEXT = re.compile(r"(?:\\text\{[^{}]*\}|[\s\-,.'\"()]|\d)*")
_PROSE = re.compile(
    r"[a-zA-Z][a-zA-Z'\-]*(?: [a-zA-Z][a-zA-Z'\-]*)+|[A-Z][a-z]{2,}|[a-z]{4,}|[Nn]o|yes|DNE"
)
_NO_PROSE = re.compile(
    r"\b(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|arcsin|arccos|arctan|frac|theta|alpha|beta)\b"
    r"|^(?:[a-zA-Z] )+[a-zA-Z]$"
)


@dataclass(frozen=True)
class Words:
    """A text answer or a choice: lower case, one space between words."""

    text: str
    choice: str | None = None  # the letter of "(E)" or of "(E) 12"
    rest: str = ""  # what follows the letter


def read_words(text: str) -> Words | None:
    """Text answers: `\\text{...}` wholly, plain prose, or a choice letter."""
    choice = _CHOICE.fullmatch(text)
    if choice is None and re.fullmatch(r"\(?[A-J]\)?|\(?\\text\{\s*\(?[A-J]\)?\s*\}\)?", text):
        letter = re.sub(r"\\text|[^A-J]", "", text)
        return Words(letter.lower(), letter)
    if choice is not None and not choice.group(2).startswith((",", "=")):
        rest = choice.group(2).strip()
        return Words(_fold_words(text), choice.group(1), rest)
    if "\\text" in text and re.search("[a-zA-Z]", text):
        letters = re.sub(r"\\text\{[^{}]*\}", "", text)
        if _ALL_TEXT.fullmatch(text) and not re.search(r"\d", letters):
            return Words(_fold_words(text))
        return None
    if _PROSE.fullmatch(text) and not _NO_PROSE.search(text):
        return Words(_fold_words(text))
    return None


def _fold_words(text: str) -> str:
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"[^\w\s]|_", " ", text.lower())
    text = re.sub(r"^(?:the|an?) (?=\w{2})", "", " ".join(text.split()))
    return re.sub(r"(?<=\w{3}[^s])s(?!\w)", "", text)  # "no solutions" is "no solution"
