"""The card in a saved model's folder, and the block in it that holds the model's curve."""

import re
from collections.abc import Iterable
from pathlib import Path

from anytime_lab.store.files import write_text

CARD = "README.md"
NOT_YET = "Not measured yet: `03_evaluate` on this folder writes it here.\n"
_BLOCK = re.compile(r"<!-- curve of update (\d+) -->\n(.*?)<!-- /curve -->", re.S)


def curve_block(update: int, text: str) -> str:
    """What stands in a card of a model after so many updates; text is markdown."""
    return f"<!-- curve of update {update} -->\n{text}<!-- /curve -->"


def known_curve(cards: Iterable[Path], update: int) -> str:
    """The curve in the first of these cards that is of the same update and was measured."""
    for path in cards:
        found = _BLOCK.search(path.read_text(encoding="utf-8")) if path.is_file() else None
        if found and int(found[1]) == update and found[2] != NOT_YET:
            return found[2]
    return NOT_YET


def put_curve(model: str | Path, text: str) -> None:
    """Write a measured curve into the card of a model's folder; nothing where it has no such card.

    Args:
        model: the folder; a name on the hub has no card here.
        text: markdown, as `read.told.told_curve` gives it.
    """
    path = Path(model) / CARD
    card = path.read_text(encoding="utf-8") if path.is_file() else ""
    if found := _BLOCK.search(card):
        block = curve_block(int(found[1]), text)
        write_text(path, card[: found.start()] + block + card[found.end() :])
