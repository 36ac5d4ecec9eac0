"""Decide whether two mathematical answers are equal, form by form.

Three-valued: True, False, or None where only an algebra system can tell. `decide` settles the easy
majority in this process; a worker calls it again with `algebra.atoms_equal` for the rest.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

from anytime_lab.verify.forms import (
    LISTS,
    TUPLES,
    TURNED,
    Form,
    exact,
    expression,
    fold_words,
    is_name,
    key,
    read_form,
)
from anytime_lab.verify.quantities import (
    DEGREES,
    LETTER,
    RADIANS,
    colons_equal,
    numbers_equal,
    read_based,
    unit_factor,
)

AtomsEqual = Callable[[Form, Form], bool | None]  # of two expressions
_GREEK = "alpha|beta|gamma|delta|epsilon|theta|lambda|mu|rho|sigma|tau|phi|omega|ell|Delta|Omega"
_PLAIN_NAME = re.compile(
    rf"(?:(?![ei](?![_\w]))[a-zA-Z]|[A-Z]{{2,4}}|[a-zA-Z]{{4,}}|\\(?:{_GREEK}))(?:_\{{?[\w,]+\}}?)?"
    r"|[f-hpqA-Z](?:_\{?\w+\}?)?\([\w, +\-\\]*\)|\([a-zA-Z](?:_\w)?(?:, ?[a-zA-Z](?:_\w)?)+\)"
    r"|\\overline\{[A-Z]+\}|\\angle ?[A-Z]+|[a-zA-Z](?:_\w)?(?: ?[+\-] ?[a-zA-Z](?:_\w)?)+"
    r"|\\text\{(?!.*\b(?:not|half|twice|double|triple|third|less|more|wrong|incorrect|except|or|minus"
    r"|plus|times|over|log|sin|cos|tan|gcd|lcm|negative|inverse|reciprocal|squared?|roots?)\b)"
    r"[a-zA-Z '.]+\}"
)


def accepted_forms(gold: str) -> list[Form]:
    """The forms a gold accepts: itself, or either side of an `\\approx`."""
    form = read_form(gold)
    if "\\approx" not in form.signs:
        return [form]
    if set(form.signs) == {"\\approx"}:
        return list(form.items)
    cut = form.signs.index("\\approx")
    head = replace(form, items=form.items[: cut + 1], signs=form.signs[:cut])
    return [head, form.items[-1]]


def decide(answer: str, gold: str, atoms: AtomsEqual | None = None) -> bool | None:
    """Whether `answer` states `gold`; None where that takes algebra.

    Args:
        answer: As found in the text, any LaTeX or plain text.
        gold: As `MathVerifier.accepted` gives it.
        atoms: Decides two expressions; by default only numbers, words and equal texts.

    Raises:
        UnreadableError: Either is too long, too deeply nested or empty.
    """
    given = read_form(answer)
    return _any(equal(given, form, atoms or atoms_alike) for form in accepted_forms(gold))


def equal(answer: Form, gold: Form, atoms: AtomsEqual) -> bool | None:
    """Whether two forms are equal, given how to compare two expressions."""
    given, wanted = answer.kind, gold.kind
    if "relation" in (given, wanted):
        return _relations(answer, gold, atoms)
    if "words" in (given, wanted):
        return _words(answer, gold, atoms)
    if given == wanted == "expression":
        return _any(atoms(*pair) for pair in _without_units(answer, gold))
    if "matrix" in (given, wanted):
        rows = _rows(answer), _rows(gold)
        if None in rows:
            return None if "expression" in (given, wanted) else False
        return _in_order(*rows, atoms)
    ordered = given == wanted and wanted in TUPLES
    ordered |= (given, wanted) == (",", "()")  # a point without its brackets
    ordered |= given == "()" and wanted in LISTS and _names(gold.items)  # (1, 2): x = 1, y = 2
    if ordered:
        return _in_order(answer.items, gold.items, atoms)
    several = (given in LISTS and wanted in LISTS) or given == wanted == "\\cup"
    if several or (given, wanted) == (",", "\\cup"):  # "x < 1 or x > 2"
        return _unordered(answer.items, gold.items, atoms)
    # A list or set of one is that one, repeated or not; but {x = 3} is no answer.
    if given in LISTS and len(one := _distinct(answer.items)) == 1:
        return (given == "," or not one[0].signs) and equal(one[0], gold, atoms)
    return wanted in LISTS and len(gold.items) == 1 and equal(answer, gold.items[0], atoms)


def atoms_alike(answer: Form, gold: Form) -> bool | None:
    """Numbers by value, equal texts as equal; None for all else."""
    if answer.number is not None and gold.number is not None:
        return numbers_equal(answer.number, gold.number)
    keys = [key(atom.text).lstrip("+") for atom in (answer, gold)]
    if keys[0] == keys[1]:
        return True
    given, wanted = read_based(answer.text), read_based(gold.text)
    if given and wanted and (given[1] or wanted[1]):
        # A base that one side alone names is taken for granted on the other.
        return given[0] == wanted[0] and (given[1] == wanted[1] or None in (given[1], wanted[1]))
    if {"\\infty", "-\\infty"} & {*keys}:
        return False
    return colons_equal(answer.text, gold.text)


def _without_units(answer: Form, gold: Form) -> Iterator[tuple[Form, Form]]:
    """Two values, each with its unit or without, as two bare ones, in each way that there is."""
    parts = [form.unit.parts if form.unit else () for form in (answer, gold)]
    if parts.count(DEGREES) == 1:  # the other one is in radians, or holds a bare π
        degrees, other = (answer, gold) if parts[0] == DEGREES else (gold, answer)
        if RADIANS in parts or (other.unit is None and "\\pi" in other.text):
            turned = expression(rf"({degrees.text})\cdot\frac{{\pi}}{{180}}")
            other = replace(other, unit=None)
            yield (turned, other) if degrees is answer else (other, turned)
    factor = unit_factor(answer.unit, gold.unit)  # both in the gold's unit
    if factor == 1:
        yield answer, gold
    elif factor and answer.number:
        value = answer.number.value * factor
        yield replace(exact(value), number=replace(answer.number, value=value)), gold
    elif factor:
        yield expression(rf"({answer.text})\cdot{exact(factor).text}"), gold
    # With the letters of their units as factors: `2 m g` and `2mg`.
    forms = [form for form in (answer, gold) if form.unit]
    if forms and all(form.unit.letters for form in forms):
        texts = [form.written if form.unit else form.text for form in (answer, gold)]
        if all(re.search("[a-zA-Z]", text) for text in texts):
            yield expression(texts[0]), expression(texts[1])


def _words(answer: Form, gold: Form, atoms: AtomsEqual) -> bool | None:
    if answer.kind == gold.kind:
        if gold.choice and answer.choice and not (gold.items and answer.items):
            return gold.choice == answer.choice
        return answer.text == gold.text
    words, other = (gold, answer) if gold.kind == "words" else (answer, gold)
    # What a choice's letter stands for: 12 of `(E) 12`. A second letter is text.
    meant = [replace(form, choice="", items=()) if form.choice else form for form in words.items]
    folded = key(other.text).lower() == words.text.replace(" ", "")
    if words is gold and other.kind == "expression":
        return equal(answer, *meant, atoms) if meant and answer.number else folded
    if words is answer and meant:
        return equal(*meant, gold, atoms)
    if words is answer and gold.kind == "expression" and not gold.number:
        return True if folded and len(answer.text) > 1 else None
    if words is answer and gold.kind in LISTS and len(gold.items) == 1:
        return equal(answer, gold.items[0], atoms)
    # A list of words against one text such as "A, B", in any order.
    listed = [item.text for item in other.items if item.kind == "words"]
    whole = other.kind in LISTS and 0 < len(listed) == len(other.items)
    return whole and fold_words(", ".join(listed)) == words.text


def _relations(answer: Form, gold: Form, atoms: AtomsEqual) -> bool | None:
    """Equations and chains. A side that only names the answer (`x = 3`) does not count."""
    wanted = _value(gold) if gold.kind == "relation" else gold
    if answer.kind != "relation":
        return False if wanted is None else equal(answer, wanted, atoms)
    if gold.kind != "relation":
        given = _stated(answer)
        return False if given is None else _all([equal(given, gold, atoms), _holds(answer, atoms)])
    if answer.signs == gold.signs and _in_order(answer.items, gold.items, atoms_alike):
        return True
    given = _value(answer)
    texts, golds = ([item.written for item in form.items] for form in (answer, gold))
    if given is not None and wanted is not None:
        if key(texts[0]) == key(golds[0]) or not is_name(texts[0]):
            return equal(given, wanted, atoms)
        # With names on a right side they may be the same rearranged.
        if is_name(golds[0]) and not LETTER.search(texts[-1] + golds[-1]):
            return False
    # With one sign each: as one expression `left - right`, up to a factor.
    turned = (TURNED.get(answer.signs[0]),)
    if len(answer.signs) != 1 or gold.signs not in (answer.signs, turned):
        return False
    written = [rf"\relation{answer.signs[0]}{texts[0]}\to {texts[1]}"]
    written += [rf"\relation{gold.signs[0]}{golds[0]}\to {golds[1]}"]
    return atoms(*map(expression, written))


def _holds(relation: Form, atoms: AtomsEqual) -> bool | None:
    """Whether the equations between numbers in a chain are true: not in `4 = 3`."""
    verdicts = []
    for sign, (left, right) in zip(relation.signs, pairwise(relation.items), strict=True):
        if sign == "\\approx" and left.number and right.number:
            apart = abs(left.number.value - right.number.value)
            verdicts.append(apart <= abs(left.number.value) / 20)
        both = f"{left.written} {right.written}"
        unknown = "..." in both or LETTER.search(both)
        if sign == "=" and not unknown and not _is_plain_name(left.written):  # \\theta = 7
            with contextlib.suppress(ValueError):  # what cannot be read proves nothing
                verdicts.append(equal(left, right, atoms))
    return _all(verdicts)


def _is_plain_name(text: str) -> bool:
    """Whether an answer's left side names what was asked: `x`, `m+n`, `AB`; not `-x`, `x^2`."""
    # Words keep their spaces: `\\text{half of it}` is no name.
    written = text if "\\text" in text else key(text)
    return _PLAIN_NAME.fullmatch(written) is not None


def _value(relation: Form) -> Form | None:
    """What `name = … = value` gives; None where the left side is more than a name."""
    named = is_name(relation.items[0].written) or relation.items[0].number
    return _end(relation) if named and set(relation.signs) <= {"=", "\\approx"} else None


def _end(relation: Form) -> Form:
    """The value at the end of a chain: the exact one, not its rounding."""
    rounded = relation.signs.index("\\approx") if "\\approx" in relation.signs else 0
    return relation.items[rounded or -1]


def _stated(relation: Form) -> Form | None:
    """The value that an answer's equation ends in: of `m+n = 142`, `2+2 = 4`; not of `x^2 = 4`."""
    first = relation.items[0].written
    left, right = key(first), key(relation.items[-1].written)
    more = LETTER.search(left) and not _is_plain_name(first)
    if more or left == right or not set(relation.signs) <= {"=", "\\approx"}:
        return None  # 5 = 5 says nothing
    rounded = relation.signs[0] == "\\approx" and not is_name(first)
    return relation.items[0] if rounded else _end(relation)


def _rows(form: Form) -> Sequence[Form] | None:
    """Rows of a matrix; a tuple is taken as the column vector it stands for."""
    rows = form.kind == "[]" and all(row.kind == "[]" for row in form.items)
    if form.kind == "matrix" or rows:  # [[1, 2], [3, 4]]
        return form.items
    return [Form("[]", items=(item,)) for item in form.items] if form.kind == "()" else None


def _in_order(answers: Sequence[Form], golds: Sequence[Form], atoms: AtomsEqual) -> bool | None:
    if len(answers) != len(golds):
        return False
    return _all(equal(a, g, atoms) for a, g in zip(answers, golds, strict=True))


def _unordered(answers: Sequence[Form], golds: Sequence[Form], atoms: AtomsEqual) -> bool | None:
    """Each gold has its own equal answer, and none is left over; repetitions count once."""
    if _names(golds) and not any(answer.signs for answer in answers):
        return _in_order(answers, golds, atoms)  # "x = 1, y = 2" asks for an order
    left, wanted = _distinct(answers), _distinct(golds)
    if len(left) != len(wanted):
        return False
    unsure = False
    for gold in wanted:
        verdicts = [equal(answer, gold, atoms) for answer in left]
        if True in verdicts:
            left.pop(verdicts.index(True))
        elif None in verdicts:
            unsure = True
        else:
            return False
    return None if unsure else True


def _names(golds: Sequence[Form]) -> bool:
    named = {gold.items[0].written for gold in golds if gold.signs}
    return len(named) == len(golds) > 1


def _distinct(forms: Sequence[Form]) -> list[Form]:
    kept: list[Form] = []
    for form in forms:
        if not any(equal(form, other, atoms_alike) for other in kept):
            kept.append(form)
    return kept


def _settled(verdicts: Iterable[bool | None], by: bool) -> bool | None:
    """`by` as soon as a verdict is; None if any is unsure, or else not `by`."""
    unsure = False
    for verdict in verdicts:
        if verdict is by:
            return by
        unsure = unsure or verdict is None
    return None if unsure else not by


_all = partial(_settled, by=False)
_any = partial(_settled, by=True)
