"""The main job: it trains twice from one start and compares the curves.

From the shipped checkpoint it trains GRPO and AnytimeReasoner-uniform on the same problems,
evaluates the start and both results at twelve budgets on problems that neither has seen, and writes
one page. Everything runs as the project's own notebooks; a second call picks up finished parts.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from anytime_lab.read.curves import paired_differences, read_tables
from anytime_lab.read.told import summary_table, terminal_table, verdicts
from anytime_lab.run.notebook import NOTEBOOKS
from anytime_lab.run.places import LocalExecutor, cores
from anytime_lab.run.sweep import Job, JobsFailed, run_jobs
from anytime_lab.store.records import METRICS, read_jsonl, write_json

START, GRPO, AR = "start", "GRPO", "AnytimeReasoner-uniform"
AR_EQUAL_TIME = "AnytimeReasoner-uniform, GRPO's time"
PAGE = "comparison.html"
TRAIN, EVALUATE, COMPARE = (
    NOTEBOOKS / f"{name}.ipynb" for name in ("02_train", "03_evaluate", "04_budget_curves")
)
# Problems that + and - solve. The warm start searches with * too: how to search is what is learned,
# and most problems are solved at the largest budget from the beginning, if late.
TASK = {"ops": "+-", "min_success": 0.2}
PRESETS = {GRPO: ("grpo", "train_grpo"), AR: ("ar_uniform", "train_ar")}


@dataclass(frozen=True)
class Scale:
    """How large the main job is.

    Attributes:
        updates: Of each training run.
        problems: Per update, each with 8 thinkings.
        save_steps: Updates between checkpoints.
        test_problems: Held-out problems of the evaluation.
        samples: Thinkings per held-out problem.
        budgets: Thinking tokens of the evaluation.
    """

    updates: int = 60
    problems: int = 12
    save_steps: int = 5
    test_problems: int = 840
    samples: int = 3
    budgets: tuple[int, ...] = tuple(range(8, 97, 8))


SCALES = {
    "full": Scale(),
    "smoke": Scale(updates=4, problems=3, save_steps=1, test_problems=40, samples=1),
}


def lab_jobs(out: Path, scale: Scale, seed: int) -> list[Job]:
    """The runs of the main job, in order."""

    def train(name: str) -> Job:
        preset, folder = PRESETS[name]
        parameters = {
            "output_dir": str(out / folder),
            "preset": preset,
            "task_options": TASK,
            "max_steps": scale.updates,
            "problems_per_step": scale.problems,
            "save_steps": scale.save_steps,
            "seed": seed,
        }
        return Job(f"train {name}", TRAIN, parameters, out / folder)

    def evaluation(folder: str, model: str) -> dict[str, Any]:
        return {
            "output_dir": str(out / folder),
            "model": model,
            "task_options": TASK,
            "num_problems": scale.test_problems,
            "num_samples": scale.samples,
            "budgets": list(scale.budgets),
            "seed": seed,
        }

    def at_equal_time() -> dict[str, Any]:
        step = step_within(out / "train_ar", training_seconds(out / "train_grpo"))
        saved = str(out / "train_ar" / f"checkpoint-{step}") if step else "embedded"
        return evaluation("evaluate_ar_equal_time", saved)

    def comparison() -> dict[str, Any]:
        seconds = training_seconds(out / "train_grpo")
        step = step_within(out / "train_ar", seconds)
        whole = training_seconds(out / "train_ar")
        return {
            "runs": {name: str(folder) for name, folder in evaluations(out).items()},
            "reference": GRPO,
            "training": {GRPO: str(out / "train_grpo"), AR: str(out / "train_ar")},
            "equal_time": {
                GRPO: str(out / "evaluate_grpo"),
                AR: str(out / "evaluate_ar_equal_time"),
            },
            "equal_time_note": (
                f"GRPO trained for {seconds:.0f} s, {scale.updates} updates. {AR} had made {step} "
                f"updates by then; its {scale.updates} updates took {whole:.0f} s."
            ),
            "page": str(out / PAGE),
            "title": "Countdown: accuracy at every thinking budget",
            "notes": [
                "Countdown with three numbers up to 20, problems that + and - solve. One start, "
                f"{scale.updates} updates of {scale.problems} problems with 8 thinkings each, seed "
                f"{seed}. Evaluated on {scale.test_problems:,} problems that no run has trained "
                f"on, {scale.samples} thinkings each."
            ],
        }

    train_grpo, train_ar = train(GRPO), train(AR)
    after = (train_grpo.name, train_ar.name)
    jobs = [train_ar, train_grpo]
    for name, folder, model, needs in (
        (START, "evaluate_start", "embedded", ()),
        (GRPO, "evaluate_grpo", str(out / "train_grpo" / "model"), after[:1]),
        (AR, "evaluate_ar", str(out / "train_ar" / "model"), after[1:]),
    ):
        parameters = evaluation(folder, model)
        jobs.append(Job(f"evaluate {name}", EVALUATE, parameters, out / folder, needs))
    equal = out / "evaluate_ar_equal_time"
    jobs.append(Job(f"evaluate {AR_EQUAL_TIME}", EVALUATE, at_equal_time, equal, after))
    needs = tuple(job.name for job in jobs[2:])
    return [*jobs, Job("compare", COMPARE, comparison, out / "compare", needs)]


def evaluations(out: Path) -> dict[str, Path]:
    """Name of each run to the folder of its evaluation."""
    return {
        START: out / "evaluate_start",
        GRPO: out / "evaluate_grpo",
        AR: out / "evaluate_ar",
    }


def training_seconds(run: Path) -> float:
    """Wall time of all updates of a training run."""
    return read_jsonl(run / METRICS)[-1]["seconds"]


def step_within(run: Path, seconds: float) -> int:
    """Updates of the last checkpoint that a run had made after some seconds of training.

    0 where it had made none: all that it had by then was the model that it started from.
    """
    saved = {int(folder.name.split("-")[1]) for folder in run.glob("checkpoint-*")}
    spent = {line["step"]: line["seconds"] for line in read_jsonl(run / METRICS)}
    return max((step for step in saved if spent.get(step, float("inf")) <= seconds), default=0)


def run_lab(
    out: str | Path, scale: Scale, seed: int = 0, console: Console | None = None
) -> dict[str, Any]:
    """Run the main job into a folder, or what of it is left to do, and say what came out.

    Returns:
        What `lab.json` holds: seconds, the summary and the paired differences at every budget.

    Raises:
        JobsFailed: a part failed; a second call goes on.
    """
    console = console or Console()
    out = Path(out).resolve()
    started = time.time()
    workers = min(2, cores())
    console.print(
        f"Training {GRPO} and {AR} from one start, then evaluating all three at "
        f"{len(scale.budgets)} budgets, {workers} at a time. Results go to {out}."
    )
    environment = {
        # One thread each: two torch processes with two threads each spin against each other.
        "OMP_NUM_THREADS": str(max(1, cores() // workers)),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",  # the main job needs nothing from outside
    }
    run_jobs(lab_jobs(out, scale, seed), LocalExecutor(workers, environment), console)
    seconds = time.time() - started
    tables = read_tables(evaluations(out))
    summary = summary_table(tables, GRPO)
    differences = paired_differences(tables, GRPO)
    equal = read_tables({GRPO: out / "evaluate_grpo", AR: out / "evaluate_ar_equal_time"})
    equal_differences = paired_differences(equal, GRPO)
    console.print(terminal_table(summary, f"Held-out Countdown, seed {seed}"))
    for sentence in verdicts(differences[differences["run"] == AR]):
        console.print(f"At equal updates: {sentence}", highlight=False)
    for sentence in verdicts(equal_differences):
        console.print(f"At equal time: {sentence}", highlight=False)
    told = {
        "seed": seed,
        "seconds": seconds,
        "updates": scale.updates,
        "summary": json.loads(summary.to_json(orient="records")),
        "equal_updates": json.loads(differences.to_json(orient="records")),
        "equal_time": json.loads(equal_differences.to_json(orient="records")),
    }
    write_json(out / "lab.json", told)
    minutes = f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    console.print(f"\nTook {minutes}. Curves with their bands: {(out / PAGE).as_uri()}")
    console.print("Go on in JupyterLab: make jupyter (start with 04_budget_curves).")
    return told


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m anytime_lab.run.lab", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--out", default=None, help="folder of the results (runs/lab)")
    parser.add_argument("--seed", type=int, default=0, help="of training and evaluation (0)")
    parser.add_argument("--scale", choices=SCALES, default="full", help="smoke: a quick check")
    parser.add_argument("--updates", type=int, default=None, help="of each training run")
    parser.add_argument("--fresh", action="store_true", help="remove earlier results first")
    given = parser.parse_args(arguments)
    scale = SCALES[given.scale]
    if given.updates is not None:
        if given.updates < 1:
            parser.error(f"--updates is {given.updates}; expected at least 1.")
        scale = replace(scale, updates=given.updates)
    name = "lab" if given.scale == "full" else f"lab-{given.scale}"
    out = Path(given.out) if given.out else NOTEBOOKS.parent / "runs" / name
    if given.fresh and out.exists():
        _remove(out)
    try:
        run_lab(out, scale, given.seed)
    except JobsFailed as failure:
        print(
            f"Some parts failed; run the same command again to go on.\n{failure}", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on where it was.", file=sys.stderr)
        return 130
    return 0


def _remove(out: Path) -> None:
    """Remove an earlier main job, and nothing else by mistake."""
    known = {"lab.json", PAGE, "compare", *(folder for _, folder in PRESETS.values())}
    known |= {f"evaluate_{name}" for name in ("start", "grpo", "ar", "ar_equal_time")}
    if strange := sorted(path.name for path in out.iterdir() if path.name not in known):
        raise SystemExit(
            f"{out} holds {', '.join(strange[:5])}, which the main job did not make; --fresh would "
            "remove it. Choose another --out."
        )
    shutil.rmtree(out)


if __name__ == "__main__":
    raise SystemExit(main())
