"""What all verifiers share: the verdict, the format check, answer finding, TRL's signature."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from anytime_lab.verify.answers import HEADER, THINK_CLOSE, find_answer

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
