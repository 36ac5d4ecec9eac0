"""Decide whether two mathematical answers are equal, form by form.

Three-valued: True, False, or None where only an algebra system can tell. `decide` settles the easy
majority in this process; a worker calls it again with `algebra.atoms_equal` for the rest.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from anytime_lab.verify.forms import (
    LISTS,
    TUPLES,
    TURNED,
    Atom,
    Form,
    Relation,
    Several,
    Words,
    exact,
    fold_words,
    key,
    read_form,
)
from anytime_lab.verify.quantities import (
    LETTER,
    colons_equal,
    numbers_equal,
    read_based,
    unit_factor,
)

AtomsEqual = Callable[[Atom, Atom], bool | None]
_NAME = re.compile(
    r"\\?[a-zA-Z]+(?:_\{?[\w,]+\}?)?'*(?:\([\w, \\]*\))?"  # x, a_n, f(x), \theta
    r"|\\(?:text|overline)\{[^{}]*\}"
    r"|(?:[a-zA-Z](?:_\w)?|\\angle [A-Z]+)(?:\s*[+\-]\s*[a-zA-Z](?:_\w)?)*"
)
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
    if isinstance(form, Relation) and "\\approx" in form.signs:
        if set(form.signs) == {"\\approx"}:
            return list(form.members)
        cut = form.signs.index("\\approx")
        head = Relation(form.members[: cut + 1], form.signs[:cut], form.texts[: cut + 1])
        return [head, form.members[-1]]
    return [form]


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
    if isinstance(answer, Relation) or isinstance(gold, Relation):
        return _relations(answer, gold, atoms)
    if isinstance(answer, Words) or isinstance(gold, Words):
        return _words(answer, gold, atoms)
    if isinstance(answer, Atom) and isinstance(gold, Atom):
        return _any(atoms(*pair) for pair in _without_units(answer, gold))
    given, wanted = answer.kind, gold.kind
    if "matrix" in (given, wanted):
        rows = _rows(answer), _rows(gold)
        if None in rows:
            return None if isinstance(answer, Atom) or isinstance(gold, Atom) else False
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
        return (given == "," or not isinstance(one[0], Relation)) and equal(one[0], gold, atoms)
    return wanted in LISTS and len(gold.items) == 1 and equal(answer, gold.items[0], atoms)


def atoms_alike(answer: Atom, gold: Atom) -> bool | None:
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


def _without_units(answer: Atom, gold: Atom) -> Iterator[tuple[Atom, Atom]]:
    """Two values, each with its unit or without, as two bare ones, in each way that there is."""
    kinds = [atom.unit.kind if atom.unit else "" for atom in (answer, gold)]
    if kinds.count("angle") == 1:  # the other one is in radians, or holds a bare π
        degrees, other = (answer, gold) if kinds[0] == "angle" else (gold, answer)
        if "radian" in kinds or (other.unit is None and "\\pi" in other.text):
            turned = Atom(rf"({degrees.text})\cdot\frac{{\pi}}{{180}}")
            other = replace(other, unit=None)
            yield (turned, other) if degrees is answer else (other, turned)
    factor = unit_factor(answer.unit, gold.unit)  # both in the gold's unit
    if factor == 1:
        yield answer, gold
    elif factor and answer.number:
        value = answer.number.value * factor
        yield Atom(exact(value), replace(answer.number, value=value)), gold
    elif factor:
        yield Atom(rf"({answer.text})\cdot{exact(factor)}"), gold
    # With the letters of their units as factors: `2 m g` and `2mg`.
    texts = [atom.whole or ("" if atom.unit else atom.text) for atom in (answer, gold)]
    if (answer.whole or gold.whole) and all(re.search("[a-zA-Z]", text) for text in texts):
        yield Atom(texts[0]), Atom(texts[1])


def _words(answer: Form, gold: Form, atoms: AtomsEqual) -> bool | None:
    if isinstance(answer, Words) and isinstance(gold, Words):
        if gold.choice and answer.choice and not (gold.rest and answer.rest):
            return gold.choice == answer.choice
        return answer.text == gold.text
    words, other = (gold, answer) if isinstance(gold, Words) else (answer, gold)
    folded = key(other.text).lower() == words.text.replace(" ", "")
    if words is gold and isinstance(answer, Atom):
        labelled = gold.rest and answer.number
        return equal(answer, _labelled(gold), atoms) if labelled else folded
    if words is answer and answer.choice and answer.rest:
        return equal(_labelled(answer), gold, atoms)
    if words is answer and isinstance(gold, Atom) and not gold.number:
        return True if folded and len(answer.text) > 1 else None
    if words is answer and gold.kind in LISTS and len(gold.items) == 1:
        return equal(answer, gold.items[0], atoms)
    # A list of words against one text such as "A, B", in any order.
    listed = [item.text for item in other.items if isinstance(item, Words)]
    whole = other.kind in LISTS and 0 < len(listed) == len(other.items)
    return whole and fold_words(", ".join(listed)) == words.text


def _labelled(words: Words) -> Form:
    """What a choice's letter stands for: 12 of `(E) 12`. A second letter is text."""
    form = read_form(words.rest)
    return Words(form.text) if isinstance(form, Words) else form


def _relations(answer: Form, gold: Form, atoms: AtomsEqual) -> bool | None:
    """Equations and chains. A side that only names the answer (`x = 3`) does not count."""
    answer, gold = _name_first(answer), _name_first(gold)
    wanted = _value(gold) if isinstance(gold, Relation) else gold
    if not isinstance(answer, Relation):
        return False if wanted is None else equal(answer, wanted, atoms)
    if not isinstance(gold, Relation):
        given = _stated(answer)
        return False if given is None else _all([equal(given, gold, atoms), _holds(answer, atoms)])
    if answer.signs == gold.signs and _in_order(answer.members, gold.members, atoms_alike):
        return True
    given = _value(answer)
    if given is not None and wanted is not None:
        named = _is_name(answer.texts[0])
        if key(answer.texts[0]) == key(gold.texts[0]) or not named:
            return equal(given, wanted, atoms)
        # With names on a right side they may be the same rearranged.
        if _is_name(gold.texts[0]) and not LETTER.search(answer.texts[-1] + gold.texts[-1]):
            return False
    # With one sign each: as one expression `left - right`, up to a factor.
    turned = (TURNED.get(answer.signs[0]),)
    if len(answer.signs) != 1 or gold.signs not in (answer.signs, turned):
        return False
    written = (f"\\relation{f.signs[0]}{f.texts[0]}\\to {f.texts[1]}" for f in (answer, gold))
    return atoms(*map(Atom, written))


def _holds(relation: Relation, atoms: AtomsEqual) -> bool | None:
    """Whether the equations between numbers in a chain are true: not in `4 = 3`."""
    verdicts = []
    for at, sign in enumerate(relation.signs):
        left, right = relation.members[at : at + 2]
        if sign == "\\approx" and left.number and right.number:
            apart = abs(left.number.value - right.number.value)
            verdicts.append(apart <= abs(left.number.value) / 20)
        both = " ".join(relation.texts[at : at + 2])
        unknown = "..." in both or LETTER.search(both)
        if sign == "=" and not unknown and not _is_plain_name(relation.texts[at]):  # \\theta = 7
            with contextlib.suppress(ValueError):  # what cannot be read proves nothing
                verdicts.append(equal(left, right, atoms))
    return _all(verdicts)


def _name_first(form: Form) -> Form:
    """`3 = x` as `x = 3`."""
    equation = isinstance(form, Relation) and form.signs == ("=",)
    if not equation or not form.members[0].number or not _is_name(form.texts[1]):
        return form
    return Relation(form.members[::-1], form.signs, form.texts[::-1])


def _is_name(text: str) -> bool:
    """Whether a relation's left side only names the answer: `x`, `f(x)`, `m+n`, `\\text{Area}`."""
    return _NAME.fullmatch(key(text)) is not None or _NAME.fullmatch(text) is not None


def _is_plain_name(text: str) -> bool:
    """Whether an answer's left side names what was asked: `x`, `m+n`, `AB`; not `-x`, `x^2`."""
    # Words keep their spaces: `\\text{half of it}` is no name.
    written = text if "\\text" in text else key(text)
    return _PLAIN_NAME.fullmatch(written) is not None


def _value(relation: Relation) -> Form | None:
    """What `name = … = value` gives; None where the left side is more than a name."""
    named = _is_name(relation.texts[0]) or relation.members[0].number
    return _end(relation) if named and set(relation.signs) <= {"=", "\\approx"} else None


def _end(relation: Relation) -> Form:
    """The value at the end of a chain: the exact one, not its rounding."""
    rounded = relation.signs.index("\\approx") if "\\approx" in relation.signs else 0
    return relation.members[rounded or -1]


def _stated(relation: Relation) -> Form | None:
    """The value that an answer's equation ends in: of `m+n = 142`, `2+2 = 4`; not of `x^2 = 4`."""
    left, right = key(relation.texts[0]), key(relation.texts[-1])
    more = LETTER.search(left) and not _is_plain_name(relation.texts[0])
    if more or left == right or not set(relation.signs) <= {"=", "\\approx"}:
        return None  # 5 = 5 says nothing
    rounded = relation.signs[0] == "\\approx" and not _is_name(relation.texts[0])
    return relation.members[0] if rounded else _end(relation)


def _rows(form: Form) -> Sequence[Form] | None:
    """Rows of a matrix; a tuple is taken as the column vector it stands for."""
    rows = form.kind == "[]" and all(row.kind == "[]" for row in form.items)
    if form.kind == "matrix" or rows:  # [[1, 2], [3, 4]]
        return form.items
    return [Several("[]", (item,)) for item in form.items] if form.kind == "()" else None


def _in_order(answers: Sequence[Form], golds: Sequence[Form], atoms: AtomsEqual) -> bool | None:
    if len(answers) != len(golds):
        return False
    return _all(equal(a, g, atoms) for a, g in zip(answers, golds, strict=True))


def _unordered(answers: Sequence[Form], golds: Sequence[Form], atoms: AtomsEqual) -> bool | None:
    """Each gold has its own equal answer, and none is left over; repetitions count once."""
    if _names(golds) and not any(isinstance(a, Relation) for a in answers):
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
    named = {gold.texts[0] for gold in golds if isinstance(gold, Relation)}
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
