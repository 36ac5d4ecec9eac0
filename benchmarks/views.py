"""Times of the views at 1,000 problems × 32 budgets × 16 samples × 6 runs.

    python benchmarks/views.py [--problems 1000 --samples 16 --budgets 32 --runs 6 --part 32]

Made-up runs are written to a temporary folder first. First paint is from the call to a view that
is ready to show, reading included; steps are what a control's callback takes in the kernel.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anytime_lab.records import (
    FORMAT,
    RECORD_SCHEMA,
    THINKING_SCHEMA,
    part_path,
    write_json,
)

TEXT = "Let me try another way, and check it. "


def write_run(folder: Path, size: argparse.Namespace, skill: float, seed: int) -> None:
    """Writes one run of `size`, part by part, without going through rows."""
    rng = np.random.default_rng(seed)
    hard = np.random.default_rng(1).random(size.problems)
    budgets = 250 * np.arange(1, size.budgets + 1)
    total = size.problems * size.samples
    chunks = -(-total // size.part)
    write_json(
        folder / "manifest.json", {"format": FORMAT, "chunks": chunks, "dataset": {"name": "made"}}
    )
    names = np.array([f"p{i:05d}" for i in range(size.problems)])
    for chunk in range(chunks):
        k = np.arange(chunk * size.part, min((chunk + 1) * size.part, total))
        problem, sample, n = k % size.problems, k // size.problems, len(k)
        length = np.minimum(rng.integers(500, 12_000, n), budgets[-1])
        chance = 1 - hard[problem][:, None] + 0.15 * np.log(budgets / 1000) + skill
        right = (rng.random((n, size.budgets)) < np.clip(chance, 0, 1)).ravel()
        rows = len(right)
        budget = np.tile(budgets, n)
        columns = {
            "problem_id": np.repeat(names[problem], size.budgets),
            "sample": np.repeat(sample, size.budgets),
            "budget": budget,
            "summary": np.zeros(rows, int),
            "cut": np.minimum(budget, np.repeat(length, size.budgets)),
            "thinking_tokens": np.repeat(length, size.budgets),
            "thinking_end": np.repeat(
                np.where(length >= budgets[-1], "length", "closed"), size.budgets
            ),
            "summary_tokens": rng.integers(20, 118, rows),
            "finish": np.full(rows, "eos"),
            "answer": np.where(right, "42", rng.integers(0, 40, rows).astype(str)),
            "score": right.astype(float),
            "correct": right,
            "reason": np.where(right, "correct", "wrong"),
            "logprob": -rng.exponential(np.where(right, 1.0, 2.0)),
            "summary_text": np.full(rows, "The answer is \\boxed{42}. " * 8),
        }
        _write(part_path(folder, "records", chunk), columns, RECORD_SCHEMA)
        thinkings = {
            "problem_id": names[problem],
            "sample": sample,
            "question": np.full(n, "What is six times seven?"),
            "gold": np.full(n, "42"),
            "thinking": [TEXT * (int(t) // 10) for t in length],
            "token_ends": [np.arange(1, t + 1) * 4 for t in length],
            "tokens": length,
            "end": np.where(length >= budgets[-1], "length", "closed"),
        }
        _write(part_path(folder, "thinkings", chunk), thinkings, THINKING_SCHEMA)


def _write(path: Path, columns: dict, schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=schema), path, compression="zstd")


def timed(what: str, act, limit: float | None = None) -> None:
    """Prints how long the steps of `act` take: on the wall (median, worst), and of the processor.

    On a busy machine only the processor's time says something.
    """
    walls, works = [], []
    for step in act():
        wall, work = time.perf_counter(), time.process_time()
        step()
        walls.append(1000 * (time.perf_counter() - wall))
        works.append(1000 * (time.process_time() - work))
    wanted = "" if limit is None else f"   limit {limit:,.0f}"
    print(
        f"{what:<46}{statistics.median(walls):7.0f} ms, worst {max(walls):5.0f}   "
        f"cpu {statistics.median(works):5.0f}, worst {max(works):5.0f}{wanted}"
    )


def slide(control) -> list:
    """The steps of a slider over all its options."""
    values = [value for _, value in control.options]
    return [lambda v=v: setattr(control, "value", v) for v in [*values[1:], values[0]]]


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("problems", 1000), ("budgets", 32), ("samples", 16), ("runs", 6)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--part", type=int, default=32, help="thinkings per parquet part")
    size = parser.parse_args()
    started = time.perf_counter()
    from anytime_lab.widgets.budget_curves import BudgetCurves
    from anytime_lab.widgets.policies_view import Policies
    from anytime_lab.widgets.problem import InsideProblem

    print(f"{'import of the views':<48}{1000 * (time.perf_counter() - started):8.0f} ms")
    assert "torch" not in sys.modules
    with tempfile.TemporaryDirectory() as place:
        runs = [Path(place) / f"run{i}" for i in range(size.runs)]
        for i, folder in enumerate(runs):
            write_run(folder, size, 0.03 * i, i)
        views: dict = {}

        def paint(name: str, view, folders):
            return lambda: [lambda: views.__setitem__(name, view(folders))]

        timed("budget curves: first paint", paint("curves", BudgetCurves, runs), 2000)
        curves = views["curves"]
        timed("budget curves: a step of the budget", lambda: slide(curves.budget), 200)
        timed("budget curves: another prior", lambda: slide(curves.prior.kind), 200)
        ratios = np.linspace(0.3, 3, 20)
        timed(
            "budget curves: a step of the prior's ratio",
            lambda: [
                lambda: setattr(curves.prior.kind, "value", "geometric"),
                *[lambda r=r: setattr(curves.prior.ratio, "value", r) for r in ratios],
            ],
            200,
        )
        timed("budget curves: another reference", lambda: slide(curves.reference), 200)
        timed(
            "budget curves: fewer and more runs",
            lambda: [
                lambda: setattr(curves.runs, "value", curves.runs.value[:2]),
                lambda: setattr(curves.runs, "value", [f"run{i}" for i in range(size.runs)]),
            ],
        )
        timed("one problem: first paint", paint("inside", InsideProblem, runs[:2]), 2000)
        inside = views["inside"]
        timed("one problem: a step of the budget", lambda: slide(inside.budget), 200)
        ids = [value for _, value in inside.problem.options][1:6]
        timed(
            "one problem: another problem",
            lambda: [lambda p=p: setattr(inside.problem, "value", p) for p in ids],
        )
        timed("rules: first paint", paint("rules", Policies, runs), 2000)
        rules = views["rules"]
        timed("rules: a step of the setting", lambda: slide(rules.point), 200)
        timed("rules: another budget of the calibration", lambda: slide(rules.at), 200)
        timed("rules: another count of tokens", lambda: slide(rules.count), 200)
        timed("rules: another run", lambda: slide(rules.run)[:2])


if __name__ == "__main__":
    main()
