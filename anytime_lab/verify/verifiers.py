"""Verifiers: score the answer that a text gives against a gold answer.

A verifier grades batches, says why a score is 0, and is itself a TRL reward function.
`CountdownVerifier`, `ExactVerifier` and `MultipleChoiceVerifier` work in this process;
`MathVerifier` and `FunctionVerifier` hand what could hang or blow up to worker processes.
"""

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from anytime_lab.verify.answers import answer_region, find_answer, find_boxed, first_line
from anytime_lab.verify.base import AnswerVerifier, AsyncReward, Grade, Verifier, check_lengths
from anytime_lab.verify.countdown import read_expression
from anytime_lab.verify.golds import all_required, gold_text
from anytime_lab.verify.latex import UnreadableError
from anytime_lab.verify.maths import accepted_forms, decide, expressions
from anytime_lab.verify.pool import Outcome
from anytime_lab.verify.pooled import PooledVerifier

__all__ = [
    "AnswerVerifier",
    "AsyncReward",
    "CountdownVerifier",
    "ExactVerifier",
    "FunctionVerifier",
    "Grade",
    "MathVerifier",
    "MultipleChoiceVerifier",
    "PooledVerifier",
    "Verifier",
    "find_answer",
]

_SYMBOLIC = "anytime_lab.verify.symbolic"


class CountdownVerifier(AnswerVerifier):
    """The answer is an expression over the gold's numbers, each used once, with its value.

    The gold is a solution such as "(7-6)*3". The candidate must use the same numbers, as often,
    and have the same value; division is exact. Parsed in this process: linear, no `eval`.
    """

    name = "countdown"

    def find(self, text: str) -> str | None:
        """The first box, or else the first line after the header."""
        return _box_or_line(self, text)

    def grade_answers(self, answers: Sequence[str], golds: Sequence[Any]) -> list[Grade]:
        """Grade expressions against solution expressions."""
        check_lengths("answers", answers, golds)
        return [_grade_countdown(a, g) for a, g in zip(answers, golds, strict=True)]


class ExactVerifier(AnswerVerifier):
    """The answer is the gold, character by character after trimming.

    Args:
        normalise: Applied to answer and gold before they are compared; the default trims.
        settings: As `AnswerVerifier`.
    """

    name = "exact"

    def __init__(self, *, normalise: Callable[[str], str] = str.strip, **settings: Any):
        if not callable(normalise):
            raise TypeError(f"normalise is {normalise!r:.60}; expected a function, e.g. str.lower.")
        super().__init__(**settings)
        self.normalise = normalise

    def find(self, text: str) -> str | None:
        """The first box, or else the first line after the header."""
        return _box_or_line(self, text)

    def grade_answers(self, answers: Sequence[str], golds: Sequence[Any]) -> list[Grade]:
        """Grade strings; a list or tuple as gold accepts any of its entries."""
        check_lengths("answers", answers, golds)
        grades = []
        for answer, gold in zip(answers, golds, strict=True):
            accepted = gold if isinstance(gold, (list, tuple)) else [gold]
            right = self.normalise(answer) in {self.normalise(str(g)) for g in accepted}
            grades.append(_verdict(right, answer))
        return grades


class MultipleChoiceVerifier(AnswerVerifier):
    """The answer is the letter of a choice: "C", "(C)", "\\\\textbf{(C)} 12", "**C.** Paris".

    Args:
        letters: The choices there are.
        settings: As `AnswerVerifier`.
    """

    name = "multiple_choice"

    def __init__(self, *, letters: str = "ABCDE", **settings: Any):
        if (
            not isinstance(letters, str)
            or not letters.isalpha()
            or letters != letters.upper()
            or len(set(letters)) < len(letters)
        ):
            raise ValueError(f"letters is {letters!r}; expected distinct capitals, e.g. 'ABCDE'.")
        super().__init__(**settings)
        some = f"[{letters}{letters.lower()}]"
        caps = f"[{letters}]"
        # The whole answer is a letter, with or without brackets, or a letter leads a label.
        self._label = re.compile(
            rf"[\s$*(\[{{]*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{{)?[\s*(\[]*(?:"
            rf"({some})[\s$*)\]}}.:]*\Z|({caps})(?:[\s$}}]*[)\]:.]|\*\*|[\s$]*\}}))"
        )
        self._stated = re.compile(
            rf"(?:answer|choice|option)\s*(?:is|:)?\s*:?[\s$*(\[]*(?:\\\w+\{{)?[\s(]*({caps})(?!\w)"
            rf"|\(({caps})\)|\*\*\(?({caps})\)?[.:]?\*\*",
            re.I if letters.islower() else 0,
        )

    def find(self, text: str) -> str | None:
        """The first box; or else the letter that the first paragraph states, or its first line."""
        region = answer_region(text, self.header, self.think_close)
        boxed = find_boxed(region)
        if boxed is not None:
            return boxed
        line = first_line(region)
        if line is None or self._label.match(line):
            return line
        stated = self._stated.search(
            region[: region.find("\n\n", len(region) - len(region.lstrip()))]
        )
        return next(filter(None, stated.groups())) if stated else line

    def grade_answers(self, answers: Sequence[str], golds: Sequence[Any]) -> list[Grade]:
        """Grade letters; a list or tuple as gold accepts any of its entries."""
        check_lengths("answers", answers, golds)
        grades = []
        for answer, gold in zip(answers, golds, strict=True):
            accepted = gold if isinstance(gold, (list, tuple)) else [gold]
            wanted = {self._letter(str(entry)) for entry in accepted}
            letter = self._letter(answer)
            if None in wanted or not wanted:
                grades.append(Grade(None, answer, "unreadable gold"))
            elif letter is None:
                grades.append(Grade(0.0, answer, "unparsable"))
            else:
                grades.append(_verdict(letter in wanted, answer))
        return grades

    def _letter(self, answer: str) -> str | None:
        match = self._label.match(answer[:200])
        return next(filter(None, match.groups())).upper() if match else None


class MathVerifier(PooledVerifier):
    """Mathematical equality: numbers, expressions, tuples, sets, matrices, relations, text.

    Equal strings and numbers are settled in this process; what takes algebra goes to workers that
    use math-verify's parser and comparison.

    Args:
        require_all: A list as gold asks for all of its entries, in any order; by default it
            accepts any one of them.
        settings: As `PooledVerifier`: workers, seconds, memory_mb, remember, header, think_close,
            answer_column, name.
    """

    name = "math"

    def __init__(self, *, require_all: bool = False, **settings: Any):
        super().__init__(
            preload=[_SYMBOLIC],
            # The parser builds its tables on first use; let no item pay for that.
            warm_up=(f"{_SYMBOLIC}:grade", (r"\frac{x^2}{2}+\sqrt{2}", [r"\frac{x^{2}+1}{2}"])),
            **settings,
        )
        self.require_all = require_all

    def accepted(self, gold: Any) -> list[str]:
        """The golds of which any is accepted, as text.

        Raises:
            UnreadableError: The gold is empty, not finite, too long or of a type that is no answer.
        """
        many = isinstance(gold, (list, tuple)) or hasattr(gold, "tolist")
        entries = gold.tolist() if hasattr(gold, "tolist") and not isinstance(gold, str) else gold
        entries = list(entries) if many and isinstance(entries, (list, tuple)) else [entries]
        if not entries:
            raise UnreadableError("unreadable gold")
        texts = [all_required(entries)] if self.require_all else [gold_text(g) for g in entries]
        for text in texts:
            accepted_forms(text)
        return texts

    def read_golds(self, golds: Sequence[Any]) -> list[str]:
        """Why each gold cannot be read by the grader; "" where it can."""
        problems = [""] * len(golds)
        rows, jobs = [], []
        for row, gold in enumerate(golds):
            try:
                texts = [text for text in self.accepted(gold) if expressions(text)]
            except UnreadableError as error:
                problems[row] = str(error)
                continue
            rows += [row] * len(texts)
            jobs += [(f"{_SYMBOLIC}:read", [text]) for text in texts]
        for row, outcome in zip(rows, self.pool.run(jobs), strict=True):
            problems[row] = problems[row] or outcome.died or outcome.error or outcome.result or ""
        return problems

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
            return Grade(0.0, answer, "unparsable")
        if True in verdicts:
            return Grade(1.0, answer, "correct")
        if None not in verdicts:
            return Grade(0.0, answer, "wrong")
        return f"{_SYMBOLIC}:grade", [answer, texts]

    def _conclude(self, answer: str, outcome: Outcome) -> Grade:
        if outcome.result == "correct":
            return Grade(1.0, answer, "correct")
        return Grade(0.0, answer, outcome.died or outcome.result or "unparsable")


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


def _box_or_line(verifier: AnswerVerifier, text: str) -> str | None:
    region = answer_region(text, verifier.header, verifier.think_close)
    return find_boxed(region) or first_line(region)


def _grade_countdown(answer: str, gold: Any) -> Grade:
    wanted = read_expression(str(gold))
    if wanted is None or wanted.value is None:
        return Grade(None, answer, "unreadable gold")
    given = read_expression(answer)
    if given is None:
        return Grade(0.0, answer, "unparsable")
    return _verdict(given == wanted, answer)


def _verdict(right: bool, answer: str) -> Grade:
    return Grade(float(right), answer, "correct" if right else "wrong")
