"""Times of the views at 1,000 problems × 32 budgets × 16 samples × 6 runs (2,000 updates each).

    python benchmarks/views.py [--problems 1000 --samples 16 --budgets 32 --runs 6 --part 64]

Made-up runs are written to a temporary folder first. First paint is from the call to a view that
is ready to show, reading included; steps are what a control's callback takes in the kernel. The
KiB are what the page is sent, in the median step; of it plotly, sent once, is 4,800. The aims are
on the wall, of a machine that does nothing else; the processor's time is told beside.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anytime_lab.store.files import write_json
from anytime_lab.store.records import COLUMNS, FORMAT, part_path, schema_of
from anytime_lab.store.rollouts import ROLLOUT_SCHEMA, rollout_path, write_rollouts

MEASURED: list[tuple[str, list[float], float | None]] = []  # step, milliseconds, limit
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
        _write(part_path(folder, "records", chunk), columns, schema_of(COLUMNS["records"]))
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
        _write(part_path(folder, "thinkings", chunk), thinkings, schema_of(COLUMNS["thinkings"]))


def _write(path: Path, columns: dict, schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=schema), path, compression="zstd")


def write_training(folder: Path, steps: range) -> None:
    """Writes metrics of a training run with 4 budgets, as the trainer does."""
    rng = np.random.default_rng(steps.start)
    names = [f"variance/{m}/{b}" for m in ("corr", "ratio") for b in ("progress", "group", "brpo")]
    lines = []
    for step in steps:
        row = {"step": step, "seconds": 4.0 * step, "thinking/length": 4000 * rng.random()}
        names_all = ["anytime_accuracy", "uniform_accuracy", "final_accuracy"]
        for budget in (2000, 4000, 6000, 8000):
            names_all += [f"score/{budget}", *(f"{name}/{budget}" for name in names)]
        row |= dict(zip(names_all, rng.random(len(names_all)).tolist(), strict=True))
        lines.append(json.dumps(row) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "metrics.jsonl", "a") as file:
        file.writelines(lines)


def write_tree(folder: Path, tokens: int = 8000, group: int = 8, summaries: int = 4) -> None:
    """Writes the rollouts of two problems at the published size."""
    budgets = [2000, 4000, 6000, 8000]
    rng = np.random.default_rng(0)
    rows = []
    for problem in range(2):
        for sample in range(group):
            numbers = {
                name: rng.normal(size=4).tolist()
                for name in ROLLOUT_SCHEMA.names
                if name in ("credited", "returns", "progress", "group")
            }
            for method in ("brpo", "progress", "group", "grpo"):
                numbers[f"advantage_{method}"] = rng.normal(size=4).tolist()
            scores = rng.random((4, summaries)).tolist()
            rows.append(
                {
                    "problem": problem,
                    "sample": sample,
                    "prompt": "What is six times seven?",
                    "thinking": "".join(f"{w:x} " for w in rng.integers(0, 4000, tokens)),
                    "token_ends": list(range(2, 2 * tokens + 2, 2)),
                    "tokens": tokens,
                    "end": "length",
                    "cuts": budgets,
                    "scores": scores,
                    "summaries": [["The answer is \\boxed{42}. " * 8] * summaries] * 4,
                    "summary_advantages": scores,
                    **numbers,
                }
            )
    settings = {"budgets": budgets, "prior": [0.25] * 4, "baseline": "brpo"}
    write_rollouts(folder, 25, settings, rows)


def timed(what: str, act, limit: float | None = None) -> None:
    """Prints how long the steps of `act` take: on the wall (median, worst), and of the processor.

    On a busy machine only the processor's time says something.
    """
    walls, works, sizes = [], [], []
    for step in act():
        with wire() as sent:
            wall, work = time.perf_counter(), time.process_time()
            step()
            walls.append(1000 * (time.perf_counter() - wall))
            works.append(1000 * (time.process_time() - work))
        sizes.append(sum(len(json.dumps(message, default=str)) for message in sent) / 1024)
    wanted = "" if limit is None else f"   limit {limit:,.0f}"
    print(
        f"{what:<46}{statistics.median(walls):7.0f} ms, worst {max(walls):5.0f}   "
        f"cpu {statistics.median(works):5.0f}, worst {max(works):5.0f}   "
        f"{statistics.median(sizes):7,.0f} KiB{wanted}"
    )
    MEASURED.append((what, walls, limit))


@contextmanager
def wire() -> Iterator[list]:
    """The messages that the page is sent."""
    import ipywidgets
    from ipywidgets.widgets import widget

    sent: list = []
    send, create = ipywidgets.Widget._send, widget.comm.create_comm

    def told(self, message, buffers=None):
        sent.append((message, [bytes(b).hex()[::2] for b in buffers or ()]))
        return send(self, message, buffers)

    def made(**settings):
        sent.append((settings["data"], [bytes(b).hex()[::2] for b in settings["buffers"] or ()]))
        return create(**settings)

    ipywidgets.Widget._send, widget.comm.create_comm = told, made
    try:
        yield sent
    finally:
        ipywidgets.Widget._send, widget.comm.create_comm = send, create


def slide(control) -> list:
    """The steps of a slider over all its options."""
    values = [value for _, value in control.options]
    return [lambda v=v: setattr(control, "value", v) for v in [*values[1:], values[0]]]


def move(figure) -> list:
    """The steps of a figure's line over all its stops."""
    places = range(len(figure._stops))
    return [lambda at=at: setattr(figure, "at", at) for at in [*places[1:], places[0]]]


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("problems", 1000), ("budgets", 32), ("samples", 16), ("runs", 6)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--part", type=int, default=64, help="thinkings per parquet part")
    parser.add_argument("--json", default="", help="write the numbers to this file, too")
    size = parser.parse_args()
    started = time.perf_counter()
    from anytime_lab.look.curves_view import BudgetCurves
    from anytime_lab.look.policies_view import Policies
    from anytime_lab.look.problem_view import InsideProblem

    imported = 1000 * (time.perf_counter() - started)
    print(f"{'import of the views':<48}{imported:8.0f} ms")
    MEASURED.append(("import of the views", [imported], 1000))
    assert "torch" not in sys.modules
    with tempfile.TemporaryDirectory() as place:
        runs = [Path(place) / f"run{i}" for i in range(size.runs)]
        for i, folder in enumerate(runs):
            write_run(folder, size, 0.03 * i, i)
        views: dict = {}

        def paint(name: str, view, folders):
            return lambda: [lambda: views.__setitem__(name, view(folders))]

        timed("budget curves: first paint", paint("curves", BudgetCurves, runs), 1500)
        curves = views["curves"]
        timed("budget curves: a step of the budget", lambda: move(curves.live), 100)
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
        timed(
            "budget curves: another reference",
            lambda: [
                lambda n=n: setattr(curves.runs, "reference", n) for n in curves.runs.ticked[::-1]
            ],
            200,
        )
        timed(
            "budget curves: fewer and more runs",
            lambda: [
                lambda: setattr(curves.runs, "ticked", curves.runs.ticked[:2]),
                lambda: setattr(curves.runs, "ticked", [f"run{i}" for i in range(size.runs)]),
            ],
        )
        timed("one problem: first paint", paint("inside", InsideProblem, runs[:2]), 2000)
        inside = views["inside"]
        timed("one problem: a step of the budget", lambda: move(inside.live), 100)
        ids = [value for _, value in inside.problem.options][1:6]
        timed(
            "one problem: another problem",
            lambda: [lambda p=p: setattr(inside.problem, "value", p) for p in ids],
        )
        timed("rules: first paint", paint("rules", Policies, runs), 2000)
        rules = views["rules"]
        timed("rules: a step of the setting", lambda: move(rules.live), 100)
        timed("rules: another budget of the calibration", lambda: slide(rules.at), 200)
        timed("rules: another count of tokens", lambda: slide(rules.count), 200)
        timed("rules: another run", lambda: slide(rules.run)[:2])
        time_training(Path(place), size.runs, paint, views)
    from common import number, tell

    told = [
        number(what, walls, "ms", f"<= {limit:g}" if limit else "")
        for what, walls, limit in MEASURED
    ]
    print("on the wall:")
    tell("views", vars(size), told, size.json)


def time_training(place: Path, count: int, paint, views: dict) -> None:
    """Times of the views of training: 2,000 updates a run, thinkings of 8,000 tokens."""
    runs = [place / f"train{i}" for i in range(count)]
    for folder in runs:
        write_training(folder, range(1, 2001))
    write_tree(runs[0])
    size = rollout_path(runs[0], 25).stat().st_size
    print(f"{'rollouts of 16 thinkings of 8,000 tokens':<46}{size / 1024:7.0f} KiB")
    from anytime_lab.look.credit_view import Credit
    from anytime_lab.look.training_view import Training

    timed(
        "training: first paint", paint("training", lambda r: Training(r, follow=False), runs), 2000
    )
    training = views["training"]

    def grow(updates: range, changed: list[Path]):
        def step() -> None:
            for folder in changed:
                write_training(folder, updates)
            training.refresh()

        return step

    timed(
        "training: one run has a new update",
        lambda: [grow(range(s, s + 1), runs[:1]) for s in range(2001, 2011)],
        200,
    )
    timed(
        "training: all runs have a new update",
        lambda: [grow(range(s, s + 1), runs) for s in range(2011, 2021)],
    )
    timed("training: nothing new", lambda: [training.refresh] * 10, 200)
    timed("training: another run in detail", lambda: slide(training.detail), 200)
    timed("credit: first paint", paint("credit", Credit, runs[:1]), 2000)
    credit = views["credit"]
    timed(
        "credit: a step of the budget",
        lambda: [lambda b=b: credit.live.move_to(b) for b in credit.rollouts.budgets],
        200,
    )
    timed("credit: another method", lambda: slide(credit.left), 200)
    timed("credit: another thinking", lambda: slide(credit.thinking), 200)


if __name__ == "__main__":
    main()
