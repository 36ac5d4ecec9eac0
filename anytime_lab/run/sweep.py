"""Runs of a YAML file: `python -m anytime_lab.run.sweep experiments/quickstart.yaml`.

Shows what is done, what is not any more and why, and how long the rest takes; runs it on this
machine, or on a Ray cluster, and writes the comparison. A second call goes on where the first was
stopped. What the file may hold stands in `anytime_lab.run.sweep_file`, what a cluster needs in
`anytime_lab.run.ray_executor`.
"""

import argparse
import contextlib
import fcntl
import fnmatch
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from anytime_lab.read.summary import terminal_table
from anytime_lab.run.executors import Executor, LocalExecutor, cores, cuda_devices
from anytime_lab.run.jobs import Job, JobsFailed, run_jobs
from anytime_lab.run.parameters import NOTEBOOKS
from anytime_lab.run.storage import Storage, check_mirror, mirror
from anytime_lab.run.sweep_checks import check_settings
from anytime_lab.run.sweep_file import Sweep, load_sweep
from anytime_lab.run.sweep_jobs import Place, sweep_jobs
from anytime_lab.run.sweep_page import Compared, compare
from anytime_lab.run.sweep_plan import LiveExpectation, Planned, plan_line, plan_sweep, plan_table
from anytime_lab.store.records import remove_leftovers

LOCK = ".sweep.lock"


@dataclass(frozen=True)
class Prepared:
    """A sweep with its folder and jobs, checked.

    Attributes:
        jobs: All of them; `chosen` are those to run.
        storage: URL of the results, which `out` then only shows; None if they are in `out`.
    """

    sweep: Sweep
    out: Path
    jobs: Mapping[Place, Job]
    chosen: Mapping[Place, Job]
    storage: str | None = None

    def plan(self) -> list[Planned]:
        """How each chosen run stands now."""
        chosen = {job.name for job in self.chosen.values()}
        return [one for one in plan_sweep(self.jobs) if one.job.name in chosen]

    def show(self, workers: int | None = None, console: Console | None = None) -> None:
        """Print the plan."""
        console = console or Console()
        planned = self.plan()
        console.print(plan_table(planned, f"{self.sweep.title} → {self.out}"))
        console.print(plan_line(planned, workers or default_workers()), highlight=False)
        if any(one.state == "stale" for one in planned):
            console.print(
                "Stale runs are made anew; what they hold goes to .replaced/ in their folder."
            )


def prepare_sweep(
    path: str | Path,
    out: str | Path | None = None,
    only: Sequence[str] = (),
    storage: str | None = None,
) -> Prepared:
    """Read and check a sweep; nothing runs, and no model or dataset is loaded.

    Args:
        path: The YAML file.
        out: Folder of the results; `runs/NAME` beside the notebooks if None.
        only: Patterns such as `ar_*` or `*/seed-0/*` of the runs wanted; what they need is added.
        storage: An fsspec URL where the results are, for a cluster whose nodes share no file
            system; `out` is then made to show what a plan and a comparison read of them.

    Raises:
        ValueError: the file, a reference, a parameter or a setting is wrong, or no run matches.
    """
    sweep = load_sweep(path)
    out = Path(out).resolve() if out else NOTEBOOKS.parent / "runs" / sweep.name
    jobs = sweep_jobs(sweep, out)
    check_settings(sweep, jobs)
    chosen = _choose(jobs, only)
    if storage is None:
        check_mirror(out, None)
    else:
        mirror(Storage(storage), out, [job.name for job in jobs.values()])
    return Prepared(sweep, out, jobs, chosen, storage)


def _choose(jobs: Mapping[Place, Job], only: Sequence[str]) -> dict[Place, Job]:
    if not only:
        return dict(jobs)
    wanted = {
        job.name
        for job in jobs.values()
        if any(fnmatch.fnmatch(job.name, p) or fnmatch.fnmatch(job.name, f"{p}/*") for p in only)
    }
    if not wanted:
        names = ", ".join(job.name for job in list(jobs.values())[:6])
        raise ValueError(f"no run matches {', '.join(only)}; there are {names}, …")
    for job in reversed(jobs.values()):  # what a job needs stands before it
        if job.name in wanted:
            wanted |= set(job.after)
    return {place: job for place, job in jobs.items() if job.name in wanted}


def executor_for(name: str, prepared: Prepared, workers: int | None = None) -> Executor:
    """Where a sweep's runs go: "local" is this machine, "ray" a cluster.

    Args:
        workers: Most runs at a time; None for one a GPU, or by the cores, and on a cluster for
            as many as it takes.

    Raises:
        ValueError: there is no such executor, Ray is not installed, or results behind a URL are
            wanted of this machine.
    """
    if name == "ray":
        try:
            from anytime_lab.run.ray_executor import RayExecutor
        except ModuleNotFoundError as error:
            raise ValueError(
                f"a Ray cluster needs Ray ({error}): pip install 'anytime-lab[ray]'."
            ) from error
        return RayExecutor(prepared.out, prepared.out / LOCK, workers, prepared.storage)
    if name != "local":
        raise ValueError(f"there is no executor {name!r}; choose local or ray.")
    if prepared.storage is not None:
        raise ValueError(
            f"runs of this machine go to a folder; leave out the storage {prepared.storage}, or "
            "choose the executor ray."
        )
    environment = {"TOKENIZERS_PARALLELISM": "false"}
    return LocalExecutor(workers or default_workers(), environment, cuda_devices())


def run_sweep(
    prepared: Prepared,
    workers: int | None = None,
    retry_failed: bool = False,
    executor: Executor | str = "local",
    console: Console | None = None,
) -> Compared | None:
    """Run what is to be done and write the comparison over all that has a result.

    Args:
        prepared: Of `prepare_sweep`.
        workers: Runs at a time, see `executor_for`.
        retry_failed: Try failed runs again.
        executor: Where the runs go, or its name.

    Returns:
        Summary and pages; None where no step evaluates.

    Raises:
        JobsFailed: some runs failed; the comparison of the others was written.
        BlockingIOError: another sweep is running in the folder.
    """
    console = console or Console()
    named = isinstance(executor, str)
    with _only_one(prepared.out):
        if named:
            executor = executor_for(executor, prepared, workers)
        failure = None
        try:
            run_jobs(
                list(prepared.chosen.values()),
                executor,
                console,
                retry_failed=retry_failed,
                seconds_left=LiveExpectation(prepared.chosen, executor.width),
            )
        except JobsFailed as failed:
            failure = failed
        finally:
            if named:
                executor.close()
        compared = compare_finished(prepared)
    if compared is not None:
        for step, part in compared.summary.groupby("step", sort=False):
            told = prepared.sweep.title if len(compared.pages) == 1 else str(step)
            console.print(terminal_table(part, told))
        for page in compared.pages:
            console.print(f"Curves with their bands: {page.as_uri()}")
    if failure is not None:
        raise failure
    return compared


def compare_finished(prepared: Prepared) -> Compared | None:
    """Write the comparison over all runs that have a result; None if nothing was evaluated."""
    finished = {one.job.name for one in plan_sweep(prepared.jobs) if one.state == "done"}
    return compare(prepared.sweep, prepared.jobs, finished, prepared.out)


@contextlib.contextmanager
def _only_one(out: Path) -> Iterator[None]:
    out.mkdir(parents=True, exist_ok=True)
    with open(out / LOCK, "a+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_leftovers(out)  # of pages that a killed sweep was writing
        except BlockingIOError:
            raise BlockingIOError(
                f"another sweep is running in {out}. Wait for it, stop it, or choose another --out."
            ) from None
        except OSError:
            pass  # a file system without locks; each run's own check remains
        yield


def default_workers() -> int:
    """One run for each GPU; where there is none, one for two cores, and on two cores two."""
    return len(cuda_devices()) or max(min(2, cores()), cores() // 2)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m anytime_lab.run.sweep", description=__doc__.split("\n\n")[1]
    )
    parser.add_argument("file", help="such as experiments/quickstart.yaml")
    parser.add_argument("--out", help="folder of the results (runs/NAME)")
    parser.add_argument("--dry-run", action="store_true", help="check and show the plan, no more")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="PATTERN", help="runs to take, such as 'ar_*'"
    )
    parser.add_argument("--jobs", type=int, help="runs at a time (one a GPU, or by the cores)")
    parser.add_argument(
        "--executor", choices=("local", "ray"), default="local", help="ray: on a Ray cluster"
    )
    parser.add_argument(
        "--storage", metavar="URL", help="where nodes leave results that share no file system"
    )
    parser.add_argument("--retry-failed", action="store_true", help="try failed runs again")
    given = parser.parse_args(arguments)
    if given.jobs is not None and given.jobs < 1:
        parser.error(f"--jobs is {given.jobs}; expected at least 1.")
    console = Console()
    try:
        prepared = prepare_sweep(given.file, given.out, given.only, given.storage)
        with contextlib.closing(executor_for(given.executor, prepared, given.jobs)) as executor:
            prepared.show(executor.width, console)
            if given.dry_run:
                return 0
            run_sweep(prepared, None, given.retry_failed, executor, console)
    except JobsFailed as failure:
        print(
            "Some runs failed; the same command runs what was not run, with --retry-failed the "
            f"failed ones again.\n{failure}",
            file=sys.stderr,
        )
        return 1
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on where it was.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
