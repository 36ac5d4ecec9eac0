"""The comparison of a sweep: one page for each step that evaluates, seeds averaged and told."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from anytime_lab.look.report import write_report
from anytime_lab.read.seeds import mean_tables, read_seed_tables, seed_frame
from anytime_lab.read.summary import summary_table
from anytime_lab.run.jobs import Job
from anytime_lab.run.sweep_file import Sweep
from anytime_lab.run.sweep_jobs import Place
from anytime_lab.store.records import METRICS, RunFolderError, read_manifest, write_text

PAGE, TABLE = "comparison", "summary.csv"


@dataclass(frozen=True)
class Compared:
    """What was written.

    Attributes:
        summary: One row per step and variant: the columns of `summary_table`, and step, seeds.
        pages: HTML files.
        evaluations: Step → variant → folders, one for each seed.
    """

    summary: pd.DataFrame
    pages: tuple[Path, ...]
    evaluations: Mapping[str, Mapping[str, list[Path]]]


def compare(
    sweep: Sweep, jobs: Mapping[Place, Job], finished: set[str], out: Path
) -> Compared | None:
    """Write the pages and `summary.csv` over all finished runs; None if nothing was evaluated.

    Args:
        finished: Names of the jobs whose results are there.
    """
    done = {place: job for place, job in jobs.items() if job.name in finished}
    evaluations = _by_step(done, _is_evaluation)
    training = _by_step(done, lambda folder: (folder / METRICS).exists())
    trained = {name: folders for step in training.values() for name, folders in step.items()}
    frames, pages = [], []
    for step, runs in evaluations.items():
        reference = sweep.reference if sweep.reference in runs else next(iter(runs))
        page = out / (f"{PAGE}.html" if len(evaluations) == 1 else f"{PAGE}-{step}.html")
        missing = [place for place, job in jobs.items() if job.name not in finished]
        notes = [*sweep.notes, *([_told_missing(missing)] if missing else [])]
        if len(training) > 1:
            notes.append("The training curves are those of the chain's last training step.")
        title = sweep.title if len(evaluations) == 1 else f"{sweep.title}: {step}"
        pages.append(
            write_report(
                runs, page, reference=reference, training=trained, title=title, notes=notes
            )
        )
        frames.append(_summary(runs, reference, step))
    if not frames:
        return None
    summary = pd.concat(frames, ignore_index=True)
    write_text(out / TABLE, summary.to_csv(index=False))
    return Compared(summary, tuple(pages), evaluations)


def _by_step(done: Mapping[Place, Job], wanted) -> dict[str, dict[str, list[Path]]]:
    found: dict[str, dict[str, list[Path]]] = {}
    for place, job in done.items():
        if wanted(job.folder):
            found.setdefault(place.step, {}).setdefault(place.variant, []).append(job.folder)
    return found


def _is_evaluation(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except RunFolderError:
        return False
    return True


def _told_missing(missing: list[Place]) -> str:
    return f"{len(missing)} of the sweep's runs have no result yet; they are not in the numbers."


def _summary(runs: Mapping[str, list[Path]], reference: str, step: str) -> pd.DataFrame:
    tables = read_seed_tables(runs)
    frame = summary_table(mean_tables(tables), reference)
    frame.insert(0, "step", step)
    frame.insert(2, "seeds", [len(tables[run]) for run in frame["run"]])
    spread = seed_frame(tables).groupby("run", sort=False)[["anytime", "final"]].std()
    for measure in ("anytime", "final"):
        frame[f"{measure}_seed_sd"] = spread[measure].reindex(frame["run"]).to_numpy()
    return frame
