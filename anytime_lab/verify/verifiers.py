"""Verifiers: score the answer that a text gives against a gold answer.

A verifier grades batches, says why a score is 0, and is itself a TRL reward function.
`CountdownVerifier`, `ExactVerifier` and `MultipleChoiceVerifier` work in this process;
`MathVerifier` and `FunctionVerifier` hand what could hang or blow up to worker processes.
"""

import asyncio
import contextlib
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite
from typing import Any, Protocol

from anytime_lab.verify.answers import (
    HEADER,
    THINK_CLOSE,
    answer_region,
    find_answer,
    find_boxed,
    first_line,
)
from anytime_lab.verify.countdown import read_expression
from anytime_lab.verify.equal import accepted_forms, decide, expressions
from anytime_lab.verify.forms import UnreadableError, names_one_choice
from anytime_lab.verify.workers import GradingPool, Outcome, in_forked_child

# Reasons for a zero that are the grader's limits, not the answer's fault.
FAILURES = ("timed out", "out of memory", "crashed")


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


class Verifier(Protocol):
    """What trainer and evaluation ask of a grader."""

    def grade(self, texts: Sequence[str], golds: Sequence[Any]) -> list[Grade]:
        """Grade texts (thinking as cut + forced text + summary, decoded, without EOS)."""
        ...

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """The same as a TRL reward function; golds come from a column."""
        ...


class AnswerVerifier:
    """Format check, answer finding and TRL's signature; a kind of answer adds `grade_answers`.

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
        """Grade texts that hold thinking, forced text and summary. Order is kept.

        Args:
            texts: Decoded, without EOS and padding.
            golds: One per text.

        Raises:
            TypeError: One of them is no list, or a text is none.
            ValueError: The two differ in length.
        """
        check_lengths("texts", texts, golds)
        grades: list[Grade | None] = [None] * len(texts)
        rows, answers = [], []
        for row, text in enumerate(texts):
            if self.think_close is not None and text.count(self.think_close) != 1:
                grades[row] = Grade(0.0, None, "format")
                continue
            answer = self.find(text)
            if answer is None:
                grades[row] = Grade(0.0, None, "no answer")
            else:
                rows.append(row)
                answers.append(answer)
        for row, grade in zip(
            rows, self.grade_answers(answers, [golds[row] for row in rows]), strict=True
        ):
            grades[row] = grade
        return grades

    def grade_answers(self, answers: Sequence[str], golds: Sequence[Any]) -> list[Grade]:
        """Grade answers that are already found (no text around them, no format to check)."""
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

    def as_async(self) -> "AsyncReward":
        """The same reward as a coroutine function, for event loops and TRL's async rewards."""
        return AsyncReward(self)


class AsyncReward:
    """A verifier whose `__call__` is awaited; the grading runs in a thread of its own."""

    def __init__(self, verifier: AnswerVerifier):
        self.verifier = verifier
        self.__name__ = verifier.__name__

    async def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """As `AnswerVerifier.__call__`, without blocking the event loop."""
        return await asyncio.to_thread(self.verifier, prompts, completions, **columns)

    async def grade(self, texts: Sequence[str], golds: Sequence[Any]) -> list[Grade]:
        """As `AnswerVerifier.grade`, without blocking the event loop."""
        return await asyncio.to_thread(self.verifier.grade, texts, golds)


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
    if isinstance(completion, str):
        return completion
    texts = []
    for message in completion:
        content = message["content"] or ""
        parts = [content] if isinstance(content, str) else [part.get("text") for part in content]
        texts += [part or "" for part in parts]
    return "".join(texts)


class PooledVerifier(AnswerVerifier):
    """A verifier that settles what it can here and has workers do the rest.

    Equal pairs are graded once, also across calls (`remember` of them); a verdict that a limit
    cut short is not remembered, so that a busy moment does not decide a whole run.

    Args:
        workers: Worker processes.
        seconds: Wall-clock limit of one item.
        memory_mb: Memory limit of a worker, MiB.
        remember: Verdicts kept.
        settings: As `AnswerVerifier`.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        seconds: float = 3.0,
        memory_mb: int = 1024,
        remember: int = 100_000,
        preload: Sequence[str] = (),
        warm_up: tuple[str, Sequence[Any]] | None = None,
        **settings: Any,
    ):
        super().__init__(**settings)
        self.pool = GradingPool(
            workers=workers,
            seconds=seconds,
            memory_mb=memory_mb,
            preload=preload,
            warm_up=warm_up,
        )
        self.remember = remember
        self._known: dict[Any, Grade] = {}
        self._counts: Counter[str] = Counter()
        self._unlock()
        in_forked_child(self._unlock)

    def _unlock(self) -> None:
        self._lock = threading.Lock()  # of the two above; never held while grading

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            copied = {"_known": dict(self._known), "_counts": Counter(self._counts)}
        return {name: v for name, v in vars(self).items() if name != "_lock"} | copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._unlock()
        in_forked_child(self._unlock)

    def metrics(self) -> Mapping[str, int]:
        """Counts since the start: "graded", "in workers", "timed out", "out of memory", "crashed".

        Items, not distinct pairs, but for "in workers".
        """
        with self._lock:
            return {name: self._counts[name] for name in ("graded", "in workers", *FAILURES)}

    def close(self) -> None:
        """End the workers; they start again when needed."""
        self.pool.close()

    def grade_answers(self, answers: Sequence[str], golds: Sequence[Any]) -> list[Grade]:
        """Grade answers in order; limits and reasons as the class says."""
        check_lengths("answers", answers, golds)
        keys = [(a, _frozen(g)) for a, g in zip(answers, golds, strict=True)]
        grades: dict[Any, Grade] = {}
        jobs: dict[Any, tuple[str, Sequence[Any]]] = {}
        for key, answer, gold in zip(keys, answers, golds, strict=True):
            if key in grades or key in jobs:
                continue
            with self._lock:
                known = self._known.get(key)
            settled = known or self._settle(answer, gold)
            if isinstance(settled, Grade):
                grades[key] = settled
                self._keep(key, settled)
            else:
                jobs[key] = settled
        waiting = list(jobs)
        with contextlib.closing(self.pool.stream(list(jobs.values()))) as stream:
            for index, outcome in stream:
                key = waiting[index]
                grades[key] = grade = self._conclude(key[0], outcome)
                with self._lock:
                    self._counts["in workers"] += 1
                if grade.reason not in FAILURES:
                    self._keep(key, grade)  # even if this call is interrupted
        with self._lock:
            self._counts["graded"] += len(keys)
            self._counts.update(grades[key].reason for key in keys)
        return [grades[key] for key in keys]

    def _keep(self, key: Any, grade: Grade) -> None:
        """Remember a verdict, and forget the oldest above `remember`."""
        with self._lock:
            self._known[key] = grade
            while len(self._known) > self.remember:
                self._known.pop(next(iter(self._known)))

    def _settle(self, answer: str, gold: Any) -> Grade | tuple[str, Sequence[Any]]:
        """The grade, or the job that finds it."""
        raise NotImplementedError

    def _conclude(self, answer: str, outcome: Outcome) -> Grade:
        """The grade that a worker's outcome stands for."""
        raise NotImplementedError


def _frozen(gold: Any) -> Any:
    """A gold as a dictionary key; equal keys are golds of equal type and text."""
    return (type(gold).__name__, repr(gold))


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

_ALGEBRA = "anytime_lab.verify.algebra"


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
        if stated is None:
            return line
        rest = stated.string[stated.end() :].split("\n")[0]
        return next(filter(None, stated.groups())) if names_one_choice(rest) else line

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
        answer = answer[:200]
        match = self._label.match(answer)
        if match is None or not names_one_choice(answer[match.end() :]):
            return None
        return next(filter(None, match.groups())).upper()


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
            preload=[_ALGEBRA],
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
            jobs += [(f"{_ALGEBRA}:read", [text]) for text in texts]
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
        return f"{_ALGEBRA}:grade", [answer, texts]

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


def gold_text(gold: Any) -> str:
    """A gold of any type as text.

    Raises:
        UnreadableError: None, a truth value, not finite, empty, or no number or text at all.
    """
    if hasattr(gold, "item") and not isinstance(gold, str):
        gold = gold.item()  # numpy and torch scalars
    if isinstance(gold, float) and not isfinite(gold):
        raise UnreadableError("unreadable gold")
    if isinstance(gold, bool) or not isinstance(gold, (str, int, float, Fraction)):
        raise UnreadableError("unreadable gold")
    if isinstance(gold, float):
        gold = int(gold) if gold.is_integer() else repr(gold)
    text = str(gold).strip()
    if not text:
        raise UnreadableError("unreadable gold")
    return text


def all_required(golds: Sequence[Any]) -> str:
    """One gold that asks for every one of several answers, in any order."""
    return "; ".join(gold_text(gold) for gold in golds)
