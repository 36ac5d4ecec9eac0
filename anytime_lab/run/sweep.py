"""Runs of a YAML file: what is done, what is not any more and why, how long the rest takes.

It runs what is left on one of `places.PLACES` and writes the comparison; a second call goes on
where the first was stopped. The file may say:

    title, notes, takes, then  texts for the page, the beginning and the end
    notebook, or steps         one notebook, or a chain: name → notebook, parameters, and what it
                               needs (gpus, processes, timeout, accelerate)
    base                       values of all runs
    scales                     name → other values of base, for `--scale NAME`
    grid                       name → values to try; all are crossed
    list                       runs by name, each with values of its own, steps to `skip`, `seeds`
    seeds                      every run is made once with each
    reference                  the run that the others are compared with
    folder                     how a run's folder is called

In a chain, parameters refer to `${seed}`, `${name}`, a value, the folder of an earlier step
`${train}` or of another run's `${train@GRPO}`, and to the facts of training in `FACTS`:
`${train.model_within(time)@AR}`. Without a chain, the values are the notebook's parameters.
"""

import contextlib
import fnmatch
import itertools
import json
import math
import re
import shutil
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pandas as pd
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
)
from rich.console import Console
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from anytime_lab.look.report import write_report
from anytime_lab.read.curves import paired_differences, read_tables
from anytime_lab.read.told import seed_frame, summary_table, terminal_table, verdicts
from anytime_lab.run.jobs import State, clock, jobs_table, run_jobs, text, told_counts
from anytime_lab.run.notebook import (
    NOTEBOOKS,
    ROOT,
    check_parameters,
    declared_parameters,
    nearest,
)
from anytime_lab.run.places import Place, open_place
from anytime_lab.run.process import RUN, Job, Needs, RunFailed
from anytime_lab.run.storage import MIRROR, Storage, mirror
from anytime_lab.store import files

MOST_RUNS = 10_000
LARGEST_SEED = 2**32 - 1  # of numpy
LONGEST_NAME = 200  # bytes; file systems take 255, and files beside a folder add to its name
DEEP = 20  # references in references
CHAIN, SINGLE = "${name}/seed-${seed}/${step}", "${name}/seed-${seed}"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._=,'+-]*")
_REFERENCE = re.compile(r"\$\{([^{}]*)\}")
_STEP = re.compile(r"(?P<step>\w+)(\.(?P<fact>[^@()]+)(\((?P<of>\w+)\))?)?(@(?P<variant>.+))?")
PAGE, TABLE = "comparison", "summary.csv"


# --- the file ------------------------------------------------------------------------------------


def find_notebook(name: str, about: ValidationInfo) -> Path:
    """A notebook by the name of a shipped one, or by its path from the YAML file."""
    file = name if name.endswith(".ipynb") else f"{name}.ipynb"
    for place in (about.context / file, NOTEBOOKS / file):
        if place.is_file():
            return place.resolve()
    shipped = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    raise ValueError(
        f"there is no notebook {name!r}, neither beside the file nor in {NOTEBOOKS}; "
        + nearest(Path(name).stem, shipped)
    )


def _accelerate(name: str, about: ValidationInfo) -> dict[str, Any]:
    """The settings of a file of accelerate, named by its path from the sweep's."""
    file = about.context / name
    if not file.is_file():
        raise ValueError(f"there is no {file}; accelerate names a file of its settings.")
    settings = YAML(typ="safe", pure=True).load(file)
    count = settings.get("num_processes") if isinstance(settings, dict) else None
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"{file} has no num_processes; `accelerate config` makes one.")
    if (machines := settings.get("num_machines", 1)) != 1:
        raise ValueError(
            f"{file} is for {machines} machines; a sweep runs each step on one. Take a file for "
            "one, or call accelerate launch on each machine (README, Several devices)."
        )
    return settings


def _different(seeds: list[int]) -> list[int]:
    if 0 < len(seeds) == len(set(seeds)) and all(0 <= seed <= LARGEST_SEED for seed in seeds):
        return seeds
    raise ValueError(
        f"seeds is {seeds}; expected a list of different whole numbers from 0 to {LARGEST_SEED:,}."
    )


Names = Annotated[dict[str, Any], BeforeValidator(lambda said: {} if said is None else said)]
Seeds = Annotated[list[int], AfterValidator(_different)]
Notebook = Annotated[str, AfterValidator(find_notebook)]
Some = Field(min_length=1)


class Step(Needs):
    """One notebook of the chain, its parameters with references, and what its runs need."""

    notebook: Notebook
    parameters: Names = {}
    accelerate: Annotated[str, AfterValidator(_accelerate)] | None = None


class Entry(BaseModel):
    """An entry of the list, with values of its own."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: Annotated[str, BeforeValidator(str)] = ""
    skip: list[str] = []
    seeds: Seeds | None = None


class SweepFile(Step):
    """All that the file says; what a step says stands here where there is no chain."""

    notebook: Notebook | None = None
    parameters: None = None  # without steps, base has the values
    steps: Annotated[dict[str, Step], Some] = {}
    title: str = ""
    base: Names = {}
    scales: dict[str, Names] = {}
    grid: dict[str, Annotated[list[Any], Some]] = {}
    entries: Annotated[list[Entry], Some] = Field([Entry()], alias="list")
    seeds: Seeds = [0]
    reference: str = ""
    notes: list[str] = []
    folder: str = ""
    takes: str = ""
    then: str = ""


class Variant(NamedTuple):
    """One point of the grid or entry of the list."""

    name: str  # also of its folder
    values: Mapping[str, Any]  # what references stand for
    skip: Sequence[str]  # steps that it does without
    seeds: Sequence[int]  # its own, or the sweep's


def _read(said: Any, folder: Path) -> SweepFile:
    """The model of what was said, or a sentence about the first thing that cannot be."""
    try:
        return SweepFile.model_validate(said, context=folder)
    except ValidationError as error:
        first = error.errors()[0]
    *path, key = (part for part in first["loc"] if isinstance(part, str))
    where = "".join(f"{part}: " for part in path)
    if first["type"] == "extra_forbidden":
        known = (Step if path else SweepFile).model_fields.items()
        names = [about.alias or name for name, about in known]
        raise ValueError(f"{where}there is no key {key!r}; {nearest(key, names)}")
    if first["type"] == "missing":
        raise ValueError(f"{where}{key} is missing; every step names one.")
    if first["type"] == "value_error":
        raise ValueError(f"{where}{first['ctx']['error']}")
    wanted = {
        "none_required": "nothing; without steps, base has the values",
        "too_short": "at least one",
    }.get(first["type"], first["msg"].removeprefix("Input should be "))
    raise ValueError(f"{where}{key} is {first['input']!r}; expected {wanted}.")


def _sweep(file: SweepFile, stem: str, scale: str | None, out: str | Path | None) -> "Sweep":
    if scale is not None and scale not in file.scales:
        raise ValueError(f"there is no scale {scale!r}; {nearest(scale, file.scales)}")
    if (file.notebook is None) == (not file.steps):
        raise ValueError("give either `notebook` (one) or `steps` (a chain).")
    for step in file.steps:
        if not re.fullmatch(r"[A-Za-z]\w*", step):
            raise ValueError(f"steps: {step}: a step's name is letters, digits and _; rename it.")
    steps = file.steps or {re.sub(r"^\d+_", "", file.notebook.stem): file}
    count = math.prod(map(len, file.grid.values())) * len(file.entries) * len(file.seeds)
    if count * len(steps) > MOST_RUNS:
        raise ValueError(
            f"grid, list, seeds and steps make {count * len(steps):,} runs; a sweep takes "
            f"{MOST_RUNS:,}. Try fewer values, or share them out over several files."
        )
    base = {**file.base, **file.scales.get(scale, {})}
    # A reference is to a value or to a step; without a chain there are no references.
    taken = {"seed", "name", *(("step", *steps) if file.steps else ())}
    variants: dict[str, Variant] = {}
    for entry, point in itertools.product(file.entries, itertools.product(*file.grid.values())):
        own, chosen = entry.model_extra, dict(zip(file.grid, point, strict=True))
        if both := sorted(own.keys() & chosen.keys()):
            raise ValueError(f"{', '.join(both)} stands in grid and in list; keep one of them.")
        values = {**base, **own, **chosen}
        if reserved := sorted(taken & values.keys()):
            raise ValueError(
                f"{', '.join(reserved)} cannot be a value of base, grid or list: "
                + ("list the seeds under `seeds`." if "seed" in reserved else "that name is taken.")
            )
        name = ",".join(filter(None, (entry.name or _name_of(own), _name_of(chosen)))) or "run"
        _check_name(f"a run would be called {name!r}", name)
        if not set(entry.skip) <= set(steps):
            raise ValueError(f"{name}: skip is {entry.skip!r}; the steps are {', '.join(steps)}.")
        if name in variants:
            raise ValueError(
                f"two runs would be called {name!r}; give the entries of list a name of their own."
            )
        variants[name] = Variant(name, values, entry.skip, entry.seeds or file.seeds)
    reference = file.reference or next(iter(variants))
    if reference not in variants:
        raise ValueError(f"reference is {reference!r}; the runs are {', '.join(variants)}.")
    said = {
        "base": base,
        "title": file.title or stem.replace("_", " "),
        "folder": file.folder or (CHAIN if file.steps else SINGLE),
        "reference": reference,
    }
    name = stem if scale is None else f"{stem}-{scale}"
    out = Path(out).expanduser().resolve() if out else ROOT / "runs" / name
    return Sweep(name, file.model_copy(update=said), steps, variants, out)


def _check_name(told: str, name: str) -> None:
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(
            f"{told[:80]}…, {len(name.encode()):,} bytes long; a folder's name takes "
            f"{LONGEST_NAME}. Give the entries of list a short `name`."
        )
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{told}, which names no folder. Give the entry of list a `name` of letters, digits "
            "and .,=+_-."
        )


def _name_of(values: Mapping[str, Any]) -> str:
    """A run's name from what makes it differ: the value alone where it is a word."""
    if len(values) == 1 and isinstance(only := next(iter(values.values())), str):
        return only.rstrip("/").split("/")[-1]
    told = []
    for name, value in values.items():
        value = value if isinstance(value, str) else json.dumps(value, default=str)
        told.append(f"{name}={re.sub(r'[^A-Za-z0-9.+-]+', '-', value).strip('-')}")
    return ",".join(told)


# --- facts of finished runs ----------------------------------------------------------------------


def training_seconds(run: Path) -> float:
    """Wall time of all updates of a training run, in tenths of a second."""
    return math.ceil(10 * files.read_jsonl(run / files.METRICS)[-1]["seconds"]) / 10


def updates_within(run: Path, seconds: float) -> int:
    """Updates of the last checkpoint that a run had made after some seconds of training.

    0 where it had made none: all that it had by then was the model that it started from.
    """
    saved = {int(folder.name.split("-")[1]) for folder in run.glob("checkpoint-*")}
    spent = {line["step"]: line["seconds"] for line in files.read_jsonl(run / files.METRICS)}
    return max((step for step in saved if spent.get(step, math.inf) <= seconds), default=0)


def model_within(run: Path, seconds: float) -> str:
    """That checkpoint, or the model that the run started from."""
    if step := updates_within(run, seconds):
        return str(run / f"checkpoint-{step}")
    about = files.read_json(run / RUN)
    return {**declared_parameters(about["notebook"]), **about["parameters"]}["model"]


# Read from the folder of a finished step; its argument is a value's name in brackets.
FACTS: Mapping[str, Callable[..., Any]] = {
    fact.__name__: fact for fact in (training_seconds, updates_within, model_within)
}


# --- references ----------------------------------------------------------------------------------


class Point(NamedTuple):
    """Where in the sweep a job stands."""

    variant: str
    seed: int
    step: str


@dataclass
class Scope:
    """What the references of one run mean."""

    sweep: "Sweep"
    point: Point
    # Whether finished runs are read; else what they would give is left as None
    results: bool = False
    after: dict[Point, None] = field(default_factory=dict)  # points that were asked for
    deferred: bool = False  # whether a result was asked for

    def fill(self, value: Any, depth: int = 0) -> Any:
        """A value with its references, at any depth in lists and mappings, filled in."""
        if depth > DEEP:
            raise ValueError(f"{value!r} refers to itself. Break the circle.")
        if isinstance(value, dict):
            return {self.fill(k, depth): self.fill(v, depth) for k, v in value.items()}
        if isinstance(value, list):
            return [self.fill(one, depth) for one in value]
        if not isinstance(value, str):
            return value
        if whole := _REFERENCE.fullmatch(value):  # alone, it keeps its type
            return self.look_up(whole[1], depth)
        if "${" in _REFERENCE.sub("", value):
            raise ValueError(f"{value!r} has a ${{ that does not end; expected ${{name}}.")

        def as_text(found: re.Match) -> str:
            told = self.look_up(found[1], depth)
            if not isinstance(told, str | int | float | None):
                raise ValueError(
                    f"{value!r}: {found[1]} is {told!r}, which cannot stand inside a text."
                )
            return str(told)

        return _REFERENCE.sub(as_text, value)

    def look_up(self, name: str, depth: int = 0) -> Any:
        """What one reference stands for."""
        named = {"name": self.point.variant, "seed": self.point.seed, "step": self.point.step}
        values = {**self.sweep.variants[self.point.variant].values, **named}
        if name in values:
            return self.fill(values[name], depth + 1)
        if not (parts := _STEP.fullmatch(name)) or parts["step"] not in self.sweep.file.steps:
            known = [f"${{{one}}}" for one in (*values, *self.sweep.file.steps)]
            raise ValueError(f"${{{name}}} is unknown; {nearest(f'${{{name}}}', known)}")
        if (fact := parts["fact"]) not in (None, *FACTS):
            raise ValueError(f"${{{name}}}: the facts of training are {', '.join(FACTS)}.")
        step, other = parts["step"], parts["variant"] or self.point.variant
        if (about := self.sweep.variants.get(other)) is None:
            raise ValueError(f"${{{name}}}: the runs are {', '.join(self.sweep.variants)}.")
        if step in about.skip:
            raise ValueError(
                f"${{{name}}}: {other} skips {step}. Give it a value of its own, as "
                f"`list: [{{name: {other}, skip: [{step}], model: ...}}]` does for ${{model}}."
            )
        order = list(self.sweep.steps)
        if not parts["variant"] and order.index(step) >= order.index(self.point.step):
            raise ValueError(
                f"${{{name}}}: {self.point.step} does not come after {step}. List the steps in "
                "the order in which they run."
            )
        seed = self.point.seed if self.point.seed in about.seeds else about.seeds[0]
        point = Point(other, seed, step)
        self.after[point] = None
        folder = self.sweep.out / folder_of(self.sweep, point)
        if fact is None:
            return str(folder)
        self.deferred = True
        arguments = [self.look_up(parts["of"], depth + 1)] if parts["of"] else []
        if not self.results:
            return None
        files.read_json(folder / files.RESULT)  # facts are those of a finished run
        return FACTS[fact](folder, *arguments)


def folder_of(sweep: "Sweep", point: Point) -> str:
    """The folder of a run from that of the sweep, such as `GRPO/seed-0/train`."""
    return str(Scope(sweep, point).fill(sweep.file.folder))


# --- the runs ------------------------------------------------------------------------------------


def _jobs(sweep: "Sweep") -> dict[Point, Job]:
    """The runs, those that others need first."""
    jobs: dict[Point, Job] = {}
    names: set[str] = set()

    def add(point: Point, path: tuple[Point, ...] = ()) -> None:
        if point in path:
            circle = " → ".join(folder_of(sweep, one) for one in (*path, point))
            raise ValueError(f"runs wait for each other: {circle}. Break the circle.")
        if point in jobs:
            return
        scope = Scope(sweep, point)
        job = _job(scope)
        if job.name in names:
            raise ValueError(f"two runs would lie in {job.name}; name them apart in `folder`.")
        names.add(job.name)
        for other in scope.after:
            add(other, (*path, point))
        jobs[point] = job

    for variant in sweep.variants.values():
        for seed, step in itertools.product(variant.seeds, sweep.steps):
            if step not in variant.skip:
                add(Point(variant.name, seed, step))
    for words in (*sweep.file.notes, sweep.file.takes, sweep.file.then):
        sweep.told(words)
    values = [variant.values for variant in sweep.variants.values()]
    said = str((sweep.file, values))  # all that may hold a reference
    idle = {name for of in values for name in of if f"${{{name}}}" not in said}
    idle = sorted(name for name in idle if f"({name})" not in said)  # a fact's argument
    if idle and sweep.file.steps:
        raise ValueError(
            f"no step refers to ${{{idle[0]}}}; a value that nothing reads would change nothing. "
            "Refer to it in a step's parameters, or leave it out."
        )
    return jobs


def _job(scope: Scope) -> Job:
    sweep, step = scope.sweep, scope.sweep.steps[scope.point.step]
    name = folder_of(sweep, scope.point)
    for part in name.split("/"):
        _check_name(f"a run would lie in {name!r}", part)
    declared = declared_parameters(step.notebook)
    values = sweep.variants[scope.point.variant].values
    said = step.parameters if sweep.file.steps else values
    folder, parameters, late = sweep.out / name, {}, False
    own = {"output_dir": str(folder), "seed": scope.point.seed}
    try:
        if "output_dir" in said:
            raise ValueError("output_dir is the run's own folder; leave it out.")
        said = {**{one: value for one, value in own.items() if one in declared}, **said}
        for one, value in said.items():
            scope.deferred = False
            parameters[one] = scope.fill(value)
            if scope.deferred:  # checked once it is known
                parameters[one], late = declared.get(one), True
        check_parameters(step.notebook, parameters)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if late:  # in a scope of its own: filling notes what was asked for
        parameters = partial(Scope(sweep, scope.point, results=True).fill, said)
    after = tuple(folder_of(sweep, other) for other in scope.after)
    needs = Needs(**{name: getattr(step, name) for name in Needs.model_fields})
    return Job(name, step.notebook, parameters, folder, after, needs)


# --- settings, before anything runs --------------------------------------------------------------


def check_settings(sweep: "Sweep") -> None:
    """Build every run's training config as its notebook will, and look up its task by name.

    Nothing is loaded: models and datasets of the hub need not be reachable.

    Raises:
        ValueError: a preset, a task or a setting is unknown, or settings do not go together.
    """
    from anytime_lab.tasks.problems import check_task

    seen = set()
    for point, job in sweep.jobs.items():
        if callable(job.parameters):  # made of results that are not there yet
            continue
        said = {k: v for k, v in job.parameters.items() if k not in ("output_dir", "seed")}
        if (kind := json.dumps([point.step, said], sort_keys=True)) in seen:
            continue
        seen.add(kind)
        values = {**declared_parameters(job.notebook), **job.parameters}
        try:
            if "task" in values:
                check_task(values["task"])
            if "preset" in values and "train_config(" in job.notebook.read_text(encoding="utf-8"):
                config_of(values, job.needs.processes)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{sweep.name}.yaml: {job.name}: {error}") from error


def config_of(values: Mapping[str, Any], processes: int = 1) -> Any:
    """The config that a training notebook makes of its parameters.

    Args:
        values: Of all parameters.
        processes: That it will run on; here their batches are those of one.
    """
    from anytime_lab.train.config import train_config

    beside = ("model", "task", "task_options", "lora")  # no settings of the training itself
    given = {name: value for name, value in values.items() if name not in beside}
    settings, key = dict(given.get("settings") or {}), "per_device_train_batch_size"
    if key in settings:
        settings[key] *= processes
    rows = given["rows_per_batch"] * processes
    return train_config(**{**given, "settings": settings, "rows_per_batch": rows})


# --- the plan ------------------------------------------------------------------------------------


def seconds_left(planned: Collection[State], workers: int) -> float | None:
    """Expected time of all that is not done; None if a kind of run has never finished."""
    expected = [one.expected for one in planned]
    if any(seconds is None for seconds in expected):
        return None
    return max([sum(expected) / workers, *expected])


def plan_line(planned: Collection[State], workers: int) -> str:
    """The plan in a sentence."""
    if (left := seconds_left(planned, workers)) is None:
        time = "The time is unknown until a run of every step has finished."
    else:
        time = f"About {clock(left)} to go, {workers} at a time, by what finished siblings took."
    return f"{told_counts(planned)}. {time}"


# --- the comparison ------------------------------------------------------------------------------


def compare(sweep: "Sweep") -> pd.DataFrame | None:
    """Write pages and `summary.csv` over all runs that have a result; None if none evaluates.

    The table of each step, what it says, and where the pages are goes to the console.

    Returns:
        One row per step and variant: the columns of `summary_table`, and step, seeds.
    """
    console, plan = sweep.console, sweep.plan(every=True)
    evaluations: dict[str, dict[str, list[Path]]] = {}  # step → variant → a folder for each seed
    training: dict[str, dict[str, list[Path]]] = {}
    for point, state in plan.items():
        folder = state.job.folder
        for found, what in ((evaluations, files.MANIFEST), (training, files.METRICS)):
            if state.status == "done" and (folder / what).exists():
                found.setdefault(point.step, {}).setdefault(point.variant, []).append(folder)
    trained = {name: folders for step in training.values() for name, folders in step.items()}
    notes = []
    for note in sweep.file.notes:
        with contextlib.suppress(ValueError, files.RunFolderError):  # of results that are not there
            notes.append(sweep.told(note, results=True))
    if missing := sum(state.status != "done" for state in plan.values()):
        notes.append(f"{missing} of the sweep's runs have no result yet; they are not in the "
                     "numbers.")  # fmt: skip
    if len(training) > 1:
        notes.append("The training curves are those of the chain's last training step.")
    frames = []
    alone = len(evaluations) == 1
    for step, runs in evaluations.items():
        reference = sweep.file.reference if sweep.file.reference in runs else next(iter(runs))
        page = sweep.out / (f"{PAGE}.html" if alone else f"{PAGE}-{step}.html")
        title = sweep.file.title if alone else f"{sweep.file.title}: {step}"
        try:
            tables = read_tables(runs)
        except files.RunFolderError as error:
            raise files.RunFolderError(
                f"{error} For a sweep that run is finished and kept: delete the result.json of its "
                "folder, then run the sweep again."
            ) from error
        write_report(runs, page, reference=reference, training=trained, title=title, notes=notes)
        frames.append(_summary(tables, reference, step))
        console.print(terminal_table(frames[-1], sweep.file.title if alone else step))
        if len(tables) > 1:
            for sentence in verdicts(paired_differences(tables, reference)):
                console.print(text(sentence), highlight=False)
        console.print(f"Curves with their bands: {page.as_uri()}", soft_wrap=True)
    if not frames:
        return None
    summary = pd.concat(frames, ignore_index=True)
    files.write_csv(sweep.out / TABLE, summary)
    return summary


def _summary(tables: Mapping, reference: str, step: str) -> pd.DataFrame:
    frame = summary_table(tables, reference)
    frame.insert(0, "step", step)
    frame.insert(2, "seeds", [len(tables[run]) for run in frame["run"]])
    spread = seed_frame(tables).groupby("run", sort=False)[["anytime", "final"]].std()
    return frame.join(spread.add_suffix("_seed_sd"), on="run")


# --- running -------------------------------------------------------------------------------------


@dataclass
class Sweep:
    """A checked file, with its defaults in place, its folder and its runs."""

    name: str
    file: SweepFile
    steps: Mapping[str, Step]
    variants: Mapping[str, Variant]
    out: Path
    jobs: Mapping[Point, Job] = field(default_factory=dict)
    chosen: Mapping[Point, Job] = field(default_factory=dict)  # those of them that are to run
    # URL of the results, which `out` then only shows; None if they are in `out`
    storage: str | None = None
    console: Console = field(default_factory=Console)  # where all of it is told

    def told(self, text: str, results: bool = False) -> str:
        """A text of the file with its references filled in, as seen from the last of the runs."""
        last = self.variants[next(reversed(self.variants))]
        point = Point(last.name, last.seeds[0], next(reversed(self.steps)))
        return str(Scope(self, point, results).fill(text))

    def plan(self, every: bool = False) -> dict[Point, State]:
        """How each run that is chosen, or every one, stands, and how long it still takes.

        That a run tells itself, or it is what finished siblings took: of its variant if there are
        any, else of its step. None: nobody knows.
        """
        runs: dict[str, Job] = {}
        plan: dict[Point, State] = {}
        took: dict[Any, list[float]] = defaultdict(list)  # of a step, and of a step and variant
        for point, job in self.jobs.items():
            try:
                run = runs[job.name] = job.run({name: runs[name].hash for name in job.after})
            # It reads results that are not there yet.
            except (KeyError, ValueError, files.RunFolderError):
                plan[point] = State(job, "new", f"after {', '.join(job.after)}")
                continue
            plan[point] = State(job, *run.stands)
            if (result := run.result) is not None:
                for kind in (point.step, (point.step, point.variant)):
                    took[kind].append(result["seconds"])
        for point, state in plan.items():
            siblings = took.get((point.step, point.variant)) or took.get(point.step)
            if state.expected is None and siblings:
                state.expected = statistics.median(siblings)
        return {point: state for point, state in plan.items() if every or point in self.chosen}

    def show(self, workers: int | None = None) -> None:
        """Print the plan."""
        console, planned = self.console, list(self.plan().values())
        if workers is None:
            workers = open_place("local", self.out).width
        console.print(text(f"{self.file.title} → {self.out}", "italic"))
        console.print(jobs_table(planned, whole=True))
        console.print(plan_line(planned, workers), highlight=False)
        if self.file.takes and any(one.status != "done" for one in planned):
            console.print(text(self.told(self.file.takes)), highlight=False)
        if any(one.status == "stale" for one in planned):
            console.print(
                "Stale runs are made anew; what they hold goes to .replaced/ in their folder."
            )

    def remove(self) -> None:
        """Remove what earlier calls made in the folder, and nothing else by mistake.

        Raises:
            ValueError: the folder holds other things.
        """
        ours = {files.WRITING, MIRROR, TABLE, ".seen-by-all", ".sweep.lock"}
        ours |= {job.name.split("/")[0] for job in self.jobs.values()}
        found = sorted(path.name for path in self.out.iterdir()) if self.out.is_dir() else []
        strange = [n for n in found if n not in ours and not fnmatch.fnmatch(n, f"{PAGE}*.html")]
        if strange:
            raise ValueError(
                f"{self.out} holds {', '.join(strange[:5])}, which this sweep did not make; "
                "--fresh would remove it. Choose another --out."
            )
        with files.only_writer(self.out):
            shutil.rmtree(self.out)


def prepare_sweep(
    path: str | Path,
    out: str | Path | None = None,
    only: Sequence[str] = (),
    storage: str | None = None,
    scale: str | None = None,
    seeds: Sequence[int] | None = None,
) -> Sweep:
    """Read and check a sweep; nothing runs, and no model or dataset is loaded.

    Args:
        path: The YAML file.
        out: Folder of the results; `runs/NAME` of the project if None.
        only: Patterns such as `ar_*` or `*/seed-0/*` of the runs wanted; what they need is added.
        storage: An fsspec URL where the results are, for a cluster whose nodes share no file
            system; `out` is then made to show what a plan and a comparison read of them.
        scale: One of the file's scales; its name joins the sweep's.
        seeds: In place of the file's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no YAML; what it says, a reference, a parameter or a setting is wrong, or
            no run matches. The message names the place and the fix.
    """
    path = Path(path)
    try:
        said = YAML(typ="safe", pure=True).load(path)  # version 1.2: 1e-6 is a number, yes is text
    except YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(said, dict):
        raise ValueError(f"{path} holds {said!r}; expected keys such as notebook and grid.")
    if seeds is not None:
        said["seeds"] = list(seeds)
    try:
        sweep = _sweep(_read(said, path.parent), path.stem, scale, out)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    sweep.jobs, sweep.storage = _jobs(sweep), storage
    check_settings(sweep)
    sweep.chosen = _choose(sweep.jobs, only)
    mirror(Storage(storage) if storage else None, sweep.out, [j.name for j in sweep.jobs.values()])
    return sweep


def _choose(jobs: Mapping[Point, Job], only: Sequence[str]) -> dict[Point, Job]:
    patterns = [one for pattern in only or "*" for one in (pattern, f"{pattern}/*")]
    wanted: set[str] = set()
    for job in reversed(jobs.values()):  # what a job needs stands before it
        if job.name in wanted or any(fnmatch.fnmatch(job.name, one) for one in patterns):
            wanted |= {job.name, *job.after}
    if not wanted:
        names = ", ".join(job.name for job in list(jobs.values())[:6])
        raise ValueError(f"no run matches {', '.join(only)}; there are {names}, …")
    return {point: job for point, job in jobs.items() if job.name in wanted}


def run_sweep(
    sweep: Sweep,
    workers: int | None = None,
    retry_failed: bool = False,
    executor: Place | str = "local",
) -> pd.DataFrame | None:
    """Run what is to be done and write the comparison over all that has a result.

    Args:
        sweep: Of `prepare_sweep`.
        workers: Runs at a time; None for one a GPU, or by the cores, and on a cluster for as many
            as it takes.
        retry_failed: Try failed runs again.
        executor: Where the runs go, or its name in `PLACES`.

    Returns:
        The summary, as `compare` gives it; None where no step evaluates.

    Raises:
        RunFailed: some runs failed; the comparison of the others was written.
        RunFolderError: another sweep is running in the folder.
    """
    with files.only_writer(sweep.out), contextlib.ExitStack() as at_end:
        files.remove_leftovers(sweep.out)  # of pages that a killed sweep was writing
        if isinstance(executor, str):
            executor = open_place(executor, sweep.out, workers, sweep.storage)
            at_end.callback(executor.close)
        try:
            run_jobs(
                list(sweep.chosen.values()),
                executor,
                sweep.console,
                retry_failed=retry_failed,
                seconds_left=lambda: seconds_left(sweep.plan().values(), executor.width),
            )
        except RunFailed:
            compare(sweep)
            raise
        compared = compare(sweep)
    if then := sweep.file.then:
        sweep.console.print(text(sweep.told(then)), highlight=False)
    return compared
