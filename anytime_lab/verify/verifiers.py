"""Verifiers: score the answer that a text gives against a gold answer.

A verifier grades batches, says why a score is 0, and is itself a TRL reward function.
`CountdownVerifier`, `ExactVerifier` and `MultipleChoiceVerifier` work in this process;
`MathVerifier` and `FunctionVerifier` hand what could hang or blow up to worker processes.
"""

import contextlib
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from math import isfinite
from typing import Any

from anytime_lab.verify.answers import (
    HEADER,
    THINK_CLOSE,
    answer_region,
    find_answer,
    find_boxed,
    first_line,
)
from anytime_lab.verify.countdown import read_expression
from anytime_lab.verify.equal import accepted_forms, decide
from anytime_lab.verify.forms import UNSURE, UnreadableError, read_form
from anytime_lab.verify.workers import GradingPool, Outcome

# Reasons for a zero that are the grader's limits, not the answer's fault.
FAILURES = ("timed out", "out of memory", "crashed")
REMEMBERED = 100_000  # verdicts that a verifier with workers keeps


@dataclass(frozen=True)
class Grade:
    """The verdict on one answer.

    Attributes:
        score: Reward, usually 0 or 1; None where the grader abstains (the gold is unreadable).
        answer: The answer as found in the text; None where there is none.
        reason: "correct", "wrong", "no answer", "unparsable", "too long", "timed out",
            "out of memory", "crashed", "format" (not exactly one think-close marker),
            "unreadable gold", or what a user's function gave as its error.
    """

    score: float | None
    answer: str | None
    reason: str


class Verifier:
    """Format check, answer finding and TRL's signature; a kind of answer adds `grade_answer`.

    Args:
        header: The forced summary header; the answer is what follows it.
        think_close: The think-close marker. Exactly one must stand in a text, or the score is 0
            with reason "format" (BRPO §5). None: the model has no such marker, nothing to check.
        answer_column: Dataset column that holds the golds when called as a reward function.
        name: Name under which TRL logs the reward.
    """

    name = "answer"

    def __init__(
        self,
        *,
        header: str | None = HEADER,
        think_close: str | None = THINK_CLOSE,
        answer_column: str = "answer",
        name: str | None = None,
    ):
        self.header = header
        self.think_close = think_close
        self.answer_column = answer_column
        self.__name__ = name or self.name  # TRL names its metrics by it

    def find(self, text: str) -> str | None:
        """The answer in a text, or None."""
        return find_answer(text, self.header, self.think_close)

    def grade(self, texts: Sequence[str], golds: Sequence[Any]) -> list[Grade]:
        """Grade texts that hold thinking as cut, forced text and summary. Order is kept.

        Args:
            texts: Decoded, without EOS and padding.
            golds: One per text.

        Raises:
            TypeError: One of them is no list, or a text is none.
            ValueError: The two differ in length.
        """
        check_lengths("texts", texts, golds)
        whole = [self.think_close is None or t.count(self.think_close) == 1 for t in texts]
        grades = [Grade(0.0, None, "no answer" if marked else "format") for marked in whole]
        said = {row: self.find(text) for row, text in enumerate(texts) if whole[row]}
        found = {row: answer for row, answer in said.items() if answer is not None}
        graded = self.grade_answers([*found.values()], [golds[row] for row in found])
        for row, grade in zip(found, graded, strict=True):
            grades[row] = grade
        return grades

    def grade_answers(self, answers: Sequence[str], golds: Sequence[Any]) -> list[Grade]:
        """Grade answers that are already found (no text around them, no format to check)."""
        check_lengths("answers", answers, golds)
        return [self.grade_answer(a, g) for a, g in zip(answers, golds, strict=True)]

    def grade_answer(self, answer: str, gold: Any) -> Grade:
        """Grade one answer."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to grade an answer.")

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """Scores as a TRL reward function; None (abstained) where the gold is unreadable.

        Args:
            prompts: Not looked at.
            completions: Strings or conversations (`[{"role": …, "content": …}]`).
            columns: The dataset's columns, one value per completion, and TRL's `log_metric`.

        Raises:
            ValueError: The column of golds is missing.
        """
        if self.answer_column not in columns:
            raise ValueError(
                f"the data set has no column {self.answer_column!r} to grade against; it has "
                f"{sorted(columns)}. Name the right one: "
                f"{type(self).__name__}(answer_column=...)."
            )
        texts = [_text(completion) for completion in completions]
        grades = self.grade(texts, columns[self.answer_column])
        log_metric = columns.get("log_metric")
        if log_metric is not None and grades:
            for reason in FAILURES:
                failed = sum(grade.reason == reason for grade in grades)
                log_metric(f"{self.__name__}/{reason.replace(' ', '_')}", float(failed))
        return [grade.score for grade in grades]


def check_lengths(what: str, given: Sequence[Any], golds: Sequence[Any]) -> None:
    """Raise unless there is a list of texts and one gold for each."""
    for name, values in ((what, given), ("golds", golds)):
        if isinstance(values, str) or not hasattr(values, "__len__"):
            raise TypeError(f"{name} is {values!r:.60}; expected a list, one entry per item.")
    if len(given) != len(golds):
        raise ValueError(
            f"got {len(given)} {what} and {len(golds)} golds; expected one gold for each."
        )
    for row, text in enumerate(given):
        if not isinstance(text, str):
            raise TypeError(f"{what}[{row}] is {text!r:.60}; expected text.")


def _text(completion: Any) -> str:
    """The text of a completion: a string, or a conversation whose contents may come in parts."""
    if isinstance(completion, Mapping):  # a message, or a part of one
        completion = completion["content"] if "content" in completion else completion.get("text")
    return completion if isinstance(completion, str) else "".join(map(_text, completion or ()))


class PooledVerifier(Verifier):
    """A verifier that settles what it can here and has workers do the rest.

    Equal pairs are graded once, also across calls (`REMEMBERED` of them); a verdict that a limit
    cut short is not remembered, so that a busy moment does not decide a whole run. A kind of
    answer adds `_settle(answer, gold)`, the grade or else the job that finds it, and
    `_conclude(answer, outcome)`, the grade that a worker's outcome stands for.

    Args:
        settings: As `Verifier`, and as `GradingPool`: workers, seconds, memory_mb.

    Attributes:
        counts: Items since the start: "graded", and by their reasons; "in workers", distinct pairs.
    """

    def __init__(self, **settings: Any):
        limits = {f.name: settings.pop(f.name) for f in fields(GradingPool) if f.name in settings}
        super().__init__(**settings)
        self.pool = GradingPool(**limits)
        self._known: dict[Any, Grade] = {}
        self.counts: Counter[str] = Counter()

    def close(self) -> None:
        """End the workers; they start again when needed."""
        self.pool.close()

    def grade_answers(self, answers: Sequence[str], golds: Sequence[Any]) -> list[Grade]:
        """Grade answers in order; limits and reasons as the class says."""
        check_lengths("answers", answers, golds)
        # Equal keys are golds of equal type and text.
        keys = [(a, type(g).__name__, repr(g)) for a, g in zip(answers, golds, strict=True)]
        with self.pool.lock:
            asked = dict(zip(keys, golds, strict=True))
            grades = {k: self._known.get(k) or self._settle(k[0], g) for k, g in asked.items()}
            jobs = {key: job for key, job in grades.items() if not isinstance(job, Grade)}
            for key, outcome in zip(jobs, self.pool.run(list(jobs.values())), strict=True):
                grades[key] = self._conclude(key[0], outcome)
            self._known |= {key: g for key, g in grades.items() if g.reason not in FAILURES}
            for key in list(self._known)[: max(0, len(self._known) - REMEMBERED)]:
                del self._known[key]
            self.counts.update(graded=len(keys), **{"in workers": len(jobs)})
            self.counts.update(grades[key].reason for key in keys)
        return [grades[key] for key in keys]


_ALGEBRA = "anytime_lab.verify.algebra"
_SENTENCE = re.compile(r"(?:(?<![\\a-zA-Z])[a-zA-Z]{2,}(?![a-zA-Z]).*?){4}", re.S)
_IN_BRACES = re.compile(r"\{[^{}]*\}")


class LineVerifier(Verifier):
    """A verifier whose answers are the first box, or else the first line after the header."""

    def find(self, text: str) -> str | None:
        """The answer in a text, or None."""
        region = answer_region(text, self.header, self.think_close)
        return find_boxed(region) or first_line(region)


class CountdownVerifier(LineVerifier):
    """The answer is an expression over the gold's numbers, each used once, with its value.

    The gold is a solution such as "(7-6)*3". The candidate must use the same numbers, as often,
    and have the same value; division is exact. Parsed in this process: linear, no `eval`.
    """

    name = "countdown"

    def grade_answer(self, answer: str, gold: Any) -> Grade:
        """Grade an expression against a solution."""
        wanted, given = read_expression(str(gold)), read_expression(answer)
        if wanted is None or wanted.value is None:
            return Grade(None, answer, "unreadable gold")
        return _verdict(given and given == wanted, answer)


class ExactVerifier(LineVerifier):
    """The answer is the gold, character by character after trimming."""

    name = "exact"

    def grade_answer(self, answer: str, gold: Any) -> Grade:
        """Grade a string; a list or tuple as gold accepts any of its entries."""
        return _verdict(answer.strip() in {str(g).strip() for g in _listed(gold)}, answer)


class MultipleChoiceVerifier(LineVerifier):
    """The answer is the letter of a choice: "C", "(C)", "\\\\textbf{(C)} 12", "**C.** Paris".

    Args:
        letters: The choices there are, out of A to J.
        settings: As `Verifier`.
    """

    name = "multiple_choice"

    def __init__(self, *, letters: str = "ABCDE", **settings: Any):
        if not letters or not set(letters) <= set("ABCDEFGHIJ") or len(set(letters)) < len(letters):
            raise ValueError(f"letters is {letters!r}; expected distinct capitals, e.g. 'ABCDE'.")
        super().__init__(**settings)
        self.letters = set(letters)
        self._stated = re.compile(
            rf"(?i:answer|choice|option)\s*(?:is|:)?\s*:?[\s$*(\[]*(?:\\\w+\{{)?[\s(]*([{letters}])"
            rf"(?!\w)|\(([{letters}])\)|\*\*\(?([{letters}])\)?[.:]?\*\*",
        )

    def find(self, text: str) -> str | None:
        """The first box; or else the letter that the first paragraph states, or its first line."""
        region = answer_region(text, self.header, self.think_close)
        boxed, line = find_boxed(region), first_line(region)
        if boxed is not None or line is None or self._letter(line):
            return boxed or line
        stated = self._stated.search(region.lstrip().partition("\n\n")[0].rstrip("."))
        if stated is None or UNSURE.match(stated.string[stated.end() :].split("\n")[0]):
            return line
        return next(filter(None, stated.groups()))

    def grade_answer(self, answer: str, gold: Any) -> Grade:
        """Grade a letter; a list or tuple as gold accepts any of its entries."""
        wanted = {self._letter(str(entry)) for entry in _listed(gold)}
        if None in wanted or not wanted:
            return Grade(None, answer, "unreadable gold")
        letter = self._letter(answer)
        return _verdict(letter and letter in wanted, answer)

    def _letter(self, answer: str) -> str | None:
        with contextlib.suppress(UnreadableError):
            form = read_form(answer[:200].upper() if len(answer.strip()) == 1 else answer[:200])
            if form.choice in self.letters:
                return form.choice
        return None


class MathVerifier(PooledVerifier):
    """Mathematical equality: numbers, expressions, tuples, sets, matrices, relations, text.

    Equal strings and numbers are settled in this process; what takes algebra goes to workers that
    use math-verify's parser and comparison.

    Args:
        require_all: A list as gold asks for all of its entries, in any order; by default it
            accepts any one of them.
        settings: As `PooledVerifier`: workers, seconds, memory_mb, header, think_close,
            answer_column, name.
    """

    name = "math"

    def __init__(self, *, require_all: bool = False, **settings: Any):
        super().__init__(
            # The parser builds its tables on first use; let no item pay for that.
            warm_up=(f"{_ALGEBRA}:grade", (r"\frac{x^2}{2}+\sqrt{2}", [r"\frac{x^{2}+1}{2}"])),
            **settings,
        )
        self.require_all = require_all

    def accepted(self, gold: Any) -> list[str]:
        """The golds of which any is accepted, as text.

        Raises:
            UnreadableError: The gold is empty, not finite, too long or of a type that is no answer.
        """
        texts = [written(entry).strip() for entry in _listed(gold)]
        if not all(texts or [""]):
            raise UnreadableError("unreadable gold")
        if self.require_all:
            texts = ["; ".join(texts)]
        for text in texts:
            accepted_forms(text)
        return texts

    def read_golds(self, golds: Sequence[Any]) -> list[str]:
        """Why each gold cannot be graded against itself; "" where it can."""
        told, rows = dict.fromkeys(map(repr, golds), ""), []
        for gold in {repr(gold): gold for gold in golds}.values():
            try:
                rows += [(gold, text) for text in self.accepted(gold)]
            except UnreadableError as error:
                told[repr(gold)] = str(error)
        # Workers need not be asked of numbers.
        hard = [text for _, text in rows if re.search(r"[a-zA-Z\\]", text)]
        outcomes = self.pool.run([(f"{_ALGEBRA}:read", [text]) for text in hard])
        read = {t: o.died or o.error or o.result for t, o in zip(hard, outcomes, strict=True)}
        before = f"{self.think_close or ''}\n\n{self.header or ''}\n"  # where an answer stands
        boxed = [f"{before}\\boxed{{{text}}}" for _, text in rows]
        grades = self.grade(boxed, [gold for gold, _ in rows])
        for (gold, text), grade in zip(rows, grades, strict=True):
            prose = _SENTENCE.search(_IN_BRACES.sub("", text))
            if prose and read_form(text).kind != "words":
                why = "a sentence in which no answer is found"
            else:
                graded = f"{text!r:.60} as it stands is graded {grade.reason!r}"
                why = read.get(text) or (graded if grade.score != 1.0 else "")
            told[repr(gold)] = told[repr(gold)] or why
        return [told[repr(gold)] for gold in golds]

    def _settle(self, answer: str, gold: Any) -> Grade | tuple[str, Sequence[Any]]:
        try:
            texts = self.accepted(gold)
        except UnreadableError:
            return Grade(None, answer, "unreadable gold")
        try:
            verdicts = [decide(answer, text) for text in texts]
        except UnreadableError as error:
            return Grade(0.0, answer, str(error))
        except RecursionError:
            return _verdict(None, answer)
        if True in verdicts or None not in verdicts:
            return _verdict(True in verdicts, answer)
        return f"{_ALGEBRA}:grade", [answer, texts]

    def _conclude(self, answer: str, outcome: Outcome) -> Grade:
        reason = outcome.died or outcome.result or "unparsable"
        return Grade(float(reason == "correct"), answer, reason)


class FunctionVerifier(PooledVerifier):
    """Scores by a user's function in worker processes, under the limits of time and memory.

    Args:
        function: `"package.module:name"` of a function `(answer, gold) -> score`, a number, a
            truth value, or None to abstain. Workers import it, so it lives in a file, not in a
            notebook cell. Golds reach it as JSON.
        settings: As `PooledVerifier`.

    An exception in the function scores 0 and is the grade's reason.
    """

    name = "function"

    def __init__(self, function: str, **settings: Any):
        module, _, name = function.partition(":") if isinstance(function, str) else ("", "", "")
        if not module or not name:
            raise ValueError(
                f"function is {function!r}; expected the path of a function that workers can "
                f"import, such as 'my_package.my_module:my_function'."
            )
        settings.setdefault("name", name.rpartition(".")[2])
        super().__init__(preload=[module], **settings)
        self.function = function

    def _settle(self, answer: str, gold: Any) -> Grade | tuple[str, Sequence[Any]]:
        return self.function, [answer, gold]

    def _conclude(self, answer: str, outcome: Outcome) -> Grade:
        if outcome.died or outcome.error:
            return Grade(0.0, answer, outcome.died or outcome.error)
        score = outcome.result
        if score is None or score != score:
            return Grade(None, answer, "abstained")
        if not isinstance(score, (bool, int, float)) or abs(score) > sys.float_info.max:
            return Grade(0.0, answer, f"{self.function} gave {score!r:.60}; expected a number")
        score = float(score)
        return Grade(score, answer, "correct" if score >= 1 else "wrong")


def _verdict(right: bool | None, answer: str) -> Grade:
    """The grade of an answer that is right, wrong, or (None) nothing that can be read."""
    reason = "unparsable" if right is None else "correct" if right else "wrong"
    return Grade(float(bool(right)), answer, reason)


def _listed(gold: Any) -> list[Any]:
    """The entries of a gold that is a list, tuple or array; any other as the only one."""
    gold = gold.tolist() if hasattr(gold, "tolist") else gold  # of numpy and torch
    entries = gold if isinstance(gold, (list, tuple)) else [gold]
    return [entry.tolist() if hasattr(entry, "tolist") else entry for entry in entries]


def written(value: Any) -> str:
    """A text as it is, a finite number as text, a float that is whole as the whole number.

    "" for what is no answer: an empty text, NaN, a truth value, any other type.
    """
    if isinstance(value, float):
        value = int(value) if value.is_integer() else value if isfinite(value) else ""
    known = isinstance(value, (str, int, float, Fraction)) and not isinstance(value, bool)
    return str(value) if known and str(value).strip() else ""
