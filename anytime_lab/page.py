"""Hostile text → HTML that shows it and does nothing else.

Model output and problem text are never trusted. A character that could act on the page, the
terminal or the order of reading is replaced by a visible one, one for one, so that offsets into
the text stay true; then everything is escaped.
"""

import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

LIMIT = 20_000  # characters of one text that are sent to the page

# Bidirectional controls, characters without width or meaning, lone surrogates, C1, tag letters.
_UNSEEN = re.compile(
    "[\u0080-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f]")  # all of C0 but tab and newline; ANSI begins so

_SECRET_NAME = re.compile(
    r"(?i)(.*[_-])?(api[_-]?key|secret|password|passwd|authorization|(hf|hub|access|auth)[_-]token)"
    r"|token"
)
_SECRET_TEXT = re.compile(
    r"(?i)(?<=://)[^/@\s'\"]+(?=@)"  # user:password of a URL
    r"|(?<=[?&]token=)[^&\s'\"]+|(?<=[?&]api_key=)[^&\s'\"]+|(?<=\bbearer )[\w.~+/=-]{8,}"
    r"|\b(hf_|sk-)[A-Za-z0-9_-]{16,}"
)


def plain(text: object) -> str:
    """The text with every character that could act replaced by a visible one, one for one."""
    shown = _CONTROL.sub(lambda m: chr(0x2421 if m[0] == "\x7f" else 0x2400 + ord(m[0])), str(text))
    return _UNSEEN.sub("\ufffd", shown)


def redacted(value: Any, hide: Callable[[str], str] = lambda secret: "***") -> Any:
    """The value without its secrets: passwords in URLs, and what keys, tokens and such names hold.

    Args:
        value: Text, or lists and mappings of it; all else comes back as it is.
        hide: From a secret to what stands in its place.
    """
    if isinstance(value, Mapping):
        return {
            name: hide(one)
            if isinstance(one, str) and one and _SECRET_NAME.fullmatch(str(name))
            else redacted(one, hide)
            for name, one in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(redacted(one, hide) for one in value)
    return _SECRET_TEXT.sub(lambda m: hide(m[0]), value) if isinstance(value, str) else value


def escaped(text: object, limit: int = LIMIT) -> str:
    """Text for the inside of an element or of a quoted attribute; cut in the middle if too long."""
    text = str(text)
    if len(text) > limit:
        head, left = limit * 3 // 4, len(text) - limit
        text = f"{text[:head]} … {left:,} characters left out … {text[head - limit :]}"
    return html.escape(plain(text))


def short(text: object, limit: int = 60) -> str:
    """The beginning of a text on one line, as plain text (not escaped): for menus and labels."""
    text = str(text)
    line = " ".join(plain(text[: 4 * limit]).split())
    return line[: limit - 1] + "…" if len(line) > limit or len(text) > 4 * limit else line


def paragraph(text: object, kind: str = "") -> str:
    """One sentence or more, escaped."""
    return f'<p class="{html.escape(kind)}">{escaped(text)}</p>'


def table(
    header: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "", kind: str = ""
) -> str:
    """A table whose first column names its rows; all is escaped but cells that are `Markup`."""
    head = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{escaped(first)}</th>'
        + "".join(
            f"<td>{cell.__html__() if hasattr(cell, '__html__') else escaped(cell)}</td>"
            for cell in rest
        )
        + "</tr>"
        for first, *rest in rows
    )
    told = f"<caption>{escaped(caption)}</caption>" if caption else ""
    return (
        f'<div class="wide"><table class="{html.escape(kind)}">{told}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def folded(words: str, inner: str) -> str:
    """Finished HTML behind its words, which open it."""
    return f"<details><summary>{escaped(words)}</summary>{inner}</details>"


def region(label: str, parts: Iterable[str]) -> str:
    """Finished HTML of a model's or a problem's text: scrolls by key, named for screen readers."""
    named = f'tabindex="0" role="region" aria-label="{escaped(label)}"'
    return f'<div class="model" {named}>{"".join(parts)}</div>'


def block(*parts: str, live: bool = False) -> str:
    """Finished HTML in the views' style, $ as text; `live` has screen readers tell its changes."""
    said = ' role="status" aria-live="polite"' if live else ""
    return f'<div class="anytime-lab tex2jax_ignore mathjax_ignore"{said}>{"".join(parts)}</div>'
