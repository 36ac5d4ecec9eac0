"""A verifier that has worker processes do what could hang or blow up."""

import contextlib
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from anytime_lab.verify.base import FAILURES, AnswerVerifier, Grade, check_lengths
from anytime_lab.verify.pool import GradingPool, Outcome, in_forked_child


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
