"""`training.json`, a line per optimiser step in `metrics.jsonl`, and `progress.json` of a run."""

import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from anytime_lab.store.manifest import describe_problems, environment
from anytime_lab.store.records import (
    METRICS,
    append_jsonl,
    read_json,
    read_jsonl,
    remove_leftovers,
    write_json,
    write_progress,
    write_text,
)
from anytime_lab.train.checkpoints import mark_complete, read_state
from anytime_lab.verify.base import FAILURES

EVAL_METRICS = "eval_metrics.jsonl"
# Not MANIFEST, which marks a folder as an evaluation: one may lie in the folder of its run.
TRAINING_MANIFEST = "training.json"
# Grades that a limit cut short, as verifiers log them: counts, of which TRL takes the mean of its
# processes. `_LOSS_METRICS` is what TRL measures in the loss, by the names it logs them under.
_FAILURES = tuple(f"/{reason.replace(' ', '_')}" for reason in FAILURES)
_LOSS_METRICS = ("entropy", "kl", "clip_ratio/region_mean")


def drop_lines_after(path: str | Path, step: int) -> None:
    """Keep the lines up to `step`: what a resumed run repeats must not stand there twice."""
    path = Path(path)
    rows = read_jsonl(path)
    kept = [row for row in rows if row["step"] <= step]
    if len(kept) == len(rows):
        return
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


class StepRecorder(TrainerCallback):
    """Collects the numbers of a step from the trainer and writes them when the step ends.

    Attributes:
        seconds: wall time inside optimiser steps, rollouts included; without set-up, evaluation
            and saving. It continues over a resume.
        counters: sums over the whole run, e.g. tokens; they too continue over a resume.
    """

    def __init__(
        self, output_dir: str | Path, logged: dict[str, list[float]], problems: Any = None
    ):
        self.folder = Path(output_dir)
        self.problems = problems  # the training set, described in the manifest
        self.logged = logged  # TRL's own lists, cleared after each log
        self.seconds = 0.0
        self.counters: dict[str, float] = defaultdict(float)
        self.resumed_from: str | None = None
        self._values: dict[str, Any] = {}
        self._seen: dict[str, int] = {}
        self._loss = 0.0
        self._started = self._began = 0.0
        self._first_step = 0

    def note(self, values: dict[str, Any]) -> None:
        """Add values to the line of the current step."""
        self._values |= values

    def add(self, name: str, seconds: float) -> None:
        """Add to a value of the current step that comes in parts, such as a time."""
        self._values[name] = self._values.get(name, 0.0) + seconds

    def value(self, name: str) -> float:
        """What `add` has made of a value so far in this step."""
        return self._values.get(name, 0.0)

    def count(self, values: dict[str, float]) -> None:
        """Add to the sums over the run."""
        for name, value in values.items():
            self.counters[name] += value

    def add_loss(self, loss: float) -> None:
        """Add the loss of one micro-batch, already divided by their number."""
        self._loss += loss

    def save(self, checkpoint: str | Path) -> None:
        """Write the sums into a checkpoint; being last, the file marks it as complete."""
        mark_complete(checkpoint, {"seconds": self.seconds, "counters": self.counters})

    def on_train_begin(self, args, state, control, **kwargs):
        """Restore the sums, drop the lines that will be written again, and say that it begins."""
        saved = read_state(self.resumed_from) if self.resumed_from else {}
        self.seconds = saved.get("seconds", 0.0)
        self.counters = defaultdict(float, saved.get("counters", {}))
        self._started, self._first_step = time.time(), state.global_step
        self._values.clear()
        if state.is_world_process_zero:
            remove_leftovers(self.folder)
            for name in (METRICS, EVAL_METRICS):
                drop_lines_after(self.folder / name, state.global_step)
            self._write_manifest(args)
            self._write_progress(state, "training starts")

    def on_step_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        """Start the step's clock."""
        self._began = time.perf_counter()
        self._loss = 0.0
        self._seen = {name: len(values) for name, values in self.logged.items()}
        if lr_scheduler is not None:
            self._values["learning_rate"] = lr_scheduler.get_last_lr()[0]

    def on_step_end(self, args, state, control, **kwargs):
        """Write the step's line and the progress."""
        duration = time.perf_counter() - self._began
        self.seconds += duration
        line = {"step": state.global_step, "epoch": state.epoch, "loss": self._loss}
        for name in _LOSS_METRICS:
            new = self.logged.get(name, [])[self._seen.get(name, 0) :]
            if new:
                line[name] = sum(new) / len(new)
        for name, values in self.logged.items():
            if name.endswith(_FAILURES):
                line[name] = sum(values[self._seen.get(name, 0) :])
        line |= self._values
        line |= {"time/step": duration, "seconds": self.seconds, **self.counters}
        self._values = {}
        if state.is_world_process_zero:
            append_jsonl(self.folder / METRICS, line)
            score = line.get("anytime_accuracy")
            self._write_progress(
                state,
                "" if score is None else f"anytime accuracy {score:.3f}, loss {line['loss']:.4f}",
            )

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Keep the evaluation's numbers beside those of training."""
        if state.is_world_process_zero and metrics:
            append_jsonl(self.folder / EVAL_METRICS, {"step": state.global_step, **metrics})

    def on_train_end(self, args, state, control, **kwargs):
        """Say that training is over."""
        if state.is_world_process_zero:
            self._write_progress(state, "training finished")

    def _write_manifest(self, args) -> None:
        """Settings, problems, code and versions; a resumed run adds a session."""
        path = self.folder / TRAINING_MANIFEST
        before = read_json(path)["sessions"] if self.resumed_from and path.exists() else []
        problems = None if self.problems is None else describe_problems(self.problems)
        settings = json.loads(json.dumps(args.to_dict(), default=str))
        sessions = [*before, {**environment(), "resumed_from": self.resumed_from}]
        write_json(path, {"dataset": problems, "settings": settings, "sessions": sessions})

    def _write_progress(self, state, message: str) -> None:
        write_progress(
            self.folder,
            "train",
            state.global_step,
            state.max_steps,
            "updates",
            started=self._started,
            done_before=self._first_step,
            message=message,
        )
