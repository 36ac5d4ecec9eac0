"""Runs of a YAML file: `python -m anytime_lab.run.sweep experiments/quickstart.yaml`.

Shows what is done, what is not any more and why, and how long the rest takes; runs it on this
machine, or on a Ray cluster, and writes the comparison. A second call goes on where the first was
stopped. What the file may hold stands in `anytime_lab.run.sweep`, what a cluster needs in
`anytime_lab.run.ray_executor`.
"""

import argparse
import contextlib
import difflib
import fcntl
import fnmatch
import itertools
import json
import re
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from anytime_lab.look.report import write_report
from anytime_lab.read.told import (
    mean_tables,
    read_seed_tables,
    seed_frame,
    summary_table,
    terminal_table,
)
from anytime_lab.run.notebook import (
    NOTEBOOKS,
    RUN,
    NotebookRun,
    RunFailed,
    check_parameters,
    declared_parameters,
    finish_run,
    told_anew,
)
from anytime_lab.run.places import (
    Executor,
    LocalExecutor,
    Needs,
    Storage,
    check_mirror,
    cores,
    cuda_devices,
    mirror,
)
from anytime_lab.run.table import clock, jobs_table, live_table
from anytime_lab.store.records import (
    METRICS,
    PROGRESS,
    RESULT,
    RunFolderError,
    read_json,
    read_manifest,
    remove_leftovers,
    write_text,
)


@dataclass(frozen=True)
class Step:
    """One notebook of the chain.

    Attributes:
        name: Also of its folder.
        notebook: Path of the source.
        parameters: With references in them.
        gpus: Devices of a run; None takes an even share.
        processes: Above 1, a kernel for each, on this machine.
        timeout: Seconds.
        accelerate: Settings by which `accelerate launch` starts the processes; None for copies of
            the model.
    """

    name: str
    notebook: Path
    parameters: Mapping[str, Any]
    gpus: float | None = None
    processes: int = 1
    timeout: float | None = None
    accelerate: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Variant:
    """One point of the grid or entry of the list.

    Attributes:
        name: Also of its folder.
        values: What references stand for.
        skip: Steps that it does without.
        seeds: Its own, or the sweep's.
    """

    name: str
    values: Mapping[str, Any]
    skip: frozenset[str]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Sweep:
    """A checked file. `reference` is the variant that the others are compared with."""

    name: str
    title: str
    steps: Mapping[str, Step]
    variants: Mapping[str, Variant]
    chained: bool
    reference: str
    notes: tuple[str, ...] = field(default=())


_KEYS = ("title", "notebook", "steps", "base", "grid", "list", "seeds", "reference", "notes",
         "gpus", "processes", "timeout", "accelerate")  # fmt: skip
_STEP_KEYS = ("notebook", "parameters", "gpus", "processes", "timeout", "accelerate")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._=,+-]*")


def load_sweep(path: str | Path) -> Sweep:
    """Read the file of a sweep.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no YAML, or says what cannot be; the message names the place and the fix.
    """
    path = Path(path)
    try:
        said = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(said, dict):
        raise ValueError(f"{path} holds {said!r}; expected keys such as notebook and grid.")
    try:
        return _sweep(path, said)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def _sweep(path: Path, said: dict) -> Sweep:
    _check_keys("", said, _KEYS)
    if ("notebook" in said) == ("steps" in said):
        raise ValueError("give either `notebook` (one) or `steps` (a chain).")
    base, grid = _mapping("base", said), _mapping("grid", said)
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"grid: {name} is {values!r}; expected a list of values to try.")
    entries = said.get("list", [{}])
    if not isinstance(entries, list) or not entries or not all(map(_is_mapping, entries)):
        raise ValueError(f"list is {entries!r}; expected a list of mappings.")
    chained = "steps" in said
    if chained:
        steps = {name: _step(path, name, about) for name, about in _mapping("steps", said).items()}
    else:
        name = re.sub(r"^\d+_", "", Path(said["notebook"]).stem)
        settings = {key: said[key] for key in _STEP_KEYS if key in said}
        steps = {name: _step(path, name, settings)}
    if not steps:
        raise ValueError("steps is empty; name at least one notebook.")
    variants: dict[str, Variant] = {}
    seeds = _seeds("seeds", said.get("seeds", [0]))
    for entry in entries:
        for point in itertools.product(*grid.values()):
            chosen = dict(zip(grid, point, strict=True))
            variant = _variant(base, entry, chosen, steps, seeds, chained)
            if variant.name in variants:
                raise ValueError(
                    f"two runs would be called {variant.name!r}; give the entries of list a name "
                    "of their own."
                )
            variants[variant.name] = variant
    reference = said.get("reference", next(iter(variants)))
    if reference not in variants:
        raise ValueError(f"reference is {reference!r}; the runs are {', '.join(variants)}.")
    title = str(said.get("title", path.stem.replace("_", " ")))
    notes = tuple(map(str, said.get("notes", ())))
    return Sweep(path.stem, title, steps, variants, chained, reference, notes)


def _variant(
    base: Mapping,
    entry: Mapping,
    chosen: Mapping,
    steps: Mapping,
    seeds: tuple[int, ...],
    chained: bool,
) -> Variant:
    own = {key: value for key, value in entry.items() if key not in ("name", "skip", "seeds")}
    if both := sorted(own.keys() & chosen.keys()):
        raise ValueError(f"{', '.join(both)} stands in grid and in list; keep one of them.")
    values = {**base, **own, **chosen}
    # A reference is to a value or to a step; without a chain there are no references.
    taken = {"seed", "name", *(steps if chained else ())}
    if reserved := sorted(taken & values.keys()):
        raise ValueError(
            f"{', '.join(reserved)} cannot be a value of base, grid or list: "
            + ("list the seeds under `seeds`." if "seed" in reserved else "that name is taken.")
        )
    name = str(entry.get("name", "")) or _name_of(own)
    name = ",".join(filter(None, [name, _name_of(chosen)])) or "run"
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"a run would be called {name!r}, which names no folder. Give the entry of list a "
            "`name` of letters, digits and .,=+_-."
        )
    skip = entry.get("skip", [])
    if not isinstance(skip, list) or not set(skip) <= set(steps):
        raise ValueError(f"{name}: skip is {skip!r}; the steps are {', '.join(steps)}.")
    seeds = _seeds(f"{name}: seeds", entry["seeds"]) if "seeds" in entry else seeds
    return Variant(name, values, frozenset(skip), seeds)


def _name_of(values: Mapping[str, Any]) -> str:
    """A run's name from what makes it differ: the value alone where it is a word."""
    if len(values) == 1 and isinstance(only := next(iter(values.values())), str):
        return only.rstrip("/").split("/")[-1]
    told = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
    }
    return ",".join(
        f"{name}={re.sub(r'[^A-Za-z0-9.+-]+', '-', value).strip('-')}"
        for name, value in told.items()
    )


def _step(path: Path, name: str, about: Any) -> Step:
    where = f"steps: {name}"
    if not _is_mapping(about) or "notebook" not in about:
        raise ValueError(f"{where} is {about!r}; expected `notebook` and `parameters`.")
    _check_keys(f"{where}: ", about, _STEP_KEYS)
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        raise ValueError(f"{where}: a step's name is letters, digits and _; rename it.")
    gpus, timeout = about.get("gpus"), about.get("timeout")
    accelerate = _accelerate(path, where, about)
    processes = about.get("processes", accelerate["num_processes"] if accelerate else 1)
    for key, value in (("gpus", gpus), ("timeout", timeout), ("processes", processes)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and (not number or value < 0):
            raise ValueError(f"{where}: {key} is {value!r}; expected a number.")
    if gpus is not None and gpus > 1 and gpus != int(gpus):
        raise ValueError(f"{where}: gpus is {gpus}; above 1 it is a whole number.")
    if not isinstance(processes, int) or processes < 1:
        raise ValueError(f"{where}: processes is {processes!r}; expected 1 or more.")
    if accelerate:
        accelerate = {**accelerate, "num_processes": processes}
    return Step(
        name,
        find_notebook(about["notebook"], path.parent),
        dict(about.get("parameters") or {}),
        gpus,
        processes,
        timeout,
        accelerate,
    )


def _accelerate(path: Path, where: str, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings of a file of accelerate, named by its path from the sweep's."""
    if (name := about.get("accelerate")) is None:
        return None
    file = path.parent / str(name)
    if not file.is_file():
        raise ValueError(f"{where}: there is no {file}; accelerate names a file of its settings.")
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    count = settings.get("num_processes") if _is_mapping(settings) else None
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"{where}: {file} has no num_processes; `accelerate config` makes one.")
    if (machines := settings.get("num_machines", 1)) != 1:
        raise ValueError(
            f"{where}: {file} is for {machines} machines; a sweep runs each step on one. Take a "
            "file for one, or call accelerate launch on each machine (README, Several devices)."
        )
    return settings


def find_notebook(name: str, folder: Path) -> Path:
    """A notebook by the name of a shipped one, or by its path from the YAML file."""
    file = name if str(name).endswith(".ipynb") else f"{name}.ipynb"
    for place in (folder / file, NOTEBOOKS / file):
        if place.is_file():
            return place.resolve()
    close = difflib.get_close_matches(Path(name).stem, [p.stem for p in NOTEBOOKS.glob("*.ipynb")])
    raise ValueError(
        f"there is no notebook {name!r}, neither beside the file nor in {NOTEBOOKS}."
        + (f" Do you mean {close[0]}?" if close else "")
    )


def _check_keys(where: str, said: Mapping, known: Sequence[str]) -> None:
    for key in said:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            raise ValueError(
                f"{where}there is no key {key!r}; "
                + (f"do you mean {close[0]}?" if close else f"there are {', '.join(known)}.")
            )


def _mapping(key: str, said: Mapping) -> dict[str, Any]:
    value = said.get(key) or {}
    if not _is_mapping(value):
        raise ValueError(f"{key} is {value!r}; expected names with values.")
    return value


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _seeds(where: str, value: Any) -> tuple[int, ...]:
    whole = isinstance(value, list) and all(type(seed) is int for seed in value)
    if not whole or not value or len(set(value)) < len(value):
        raise ValueError(f"{where} is {value!r}; expected a list of different whole numbers.")
    return tuple(value)


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of YAML 1.2's core schema, and no key twice."""

    yaml_implicit_resolvers: dict = {}

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$",
     list("-+.0123456789")),
    ("merge", r"^<<$", ["<"]),
):  # fmt: skip
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)
_Loader.add_constructor(
    "tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node))
)
_Loader.add_constructor(
    "tag:yaml.org,2002:float", lambda loader, node: float(loader.construct_scalar(node))
)


POLL = 0.25  # seconds between looks at the runs


@dataclass(frozen=True)
class Job:
    """A notebook run with a name and what has to be finished before it.

    Attributes:
        name: Unique; what the table shows.
        notebook: Path of the source.
        parameters: Of the notebook, or a function that makes them once `after` is finished.
        folder: Of the run.
        after: Names of jobs whose results it needs; when one of them has changed, this runs again.
        needs: Devices.
        root, timeout, processes, accelerate: See `NotebookRun`.
    """

    name: str
    notebook: Path
    parameters: Mapping[str, Any] | Callable[[], Mapping[str, Any]]
    folder: Path
    after: tuple[str, ...] = ()
    needs: Needs = Needs()
    root: Path | None = None
    timeout: float | None = None
    processes: int = 1
    accelerate: Mapping[str, Any] | None = None

    def run(self, inputs: Mapping[str, str] | None = None) -> NotebookRun:
        """The run with its parameters made.

        Args:
            inputs: Hashes of the runs of `after`, by name.
        """
        return NotebookRun(
            self.notebook,
            self.parameters() if callable(self.parameters) else self.parameters,
            self.folder,
            self.root,
            inputs or {},
            self.timeout,
            self.processes,
            self.accelerate,
        )


@dataclass
class _State:
    job: Job
    status: str = "waiting"  # waiting, queued, running, done, kept, failed, failed earlier, not run
    run: NotebookRun | None = None
    handle: object | None = None
    started: float = 0.0
    ended: float = 0.0
    message: str = ""
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.job.name

    @property
    def folder(self) -> Path:
        return self.job.folder

    @property
    def finished(self) -> bool:
        return self.status in ("done", "kept")


class JobsFailed(RuntimeError):
    """Some jobs failed; the others' results are kept."""


def run_jobs(
    jobs: Sequence[Job],
    executor: Executor | int,
    console: Console | None = None,
    *,
    retry_failed: bool = True,
    seconds_left: Callable[[Mapping[str, str]], float | None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Run jobs side by side in the given order, each as soon as what it needs is there.

    A job whose folder holds its result already is kept. Ctrl-C and SIGTERM stop all runs; the next
    call goes on from what they left.

    Args:
        jobs: In order of preference.
        executor: Where the runs go; a number is so many at a time on this machine.
        console: Where the live table goes.
        retry_failed: Try a run again that failed when it was last tried as it is now.
        seconds_left: From the jobs' states by name to the time that all of them still take.

    Returns:
        Name of a job to its `result.json`.

    Raises:
        ValueError: a job needs an unknown one or itself, or a parameter is wrong; nothing has run.
        JobsFailed: at least one failed; jobs that do not need it were still run.
    """
    states = {job.name: _State(job) for job in jobs}
    if isinstance(executor, int):
        executor = LocalExecutor(executor)
    _check(jobs, states, executor)
    console = console or Console()

    def table() -> Any:
        statuses = {state.name: state.status for state in states.values()}
        left = seconds_left(statuses) if seconds_left is not None else None
        return jobs_table(list(states.values()), left)

    with _stopping(states, executor), live_table(table, console) as draw:
        while _advance(states, executor, retry_failed, console):
            draw()
            time.sleep(POLL)
    failed = [state for state in states.values() if not state.finished]
    if failed:
        raise JobsFailed("\n".join(f"{s.job.name}: {s.message or s.status}" for s in failed))
    return {name: state.result for name, state in states.items()}


def _check(jobs: Sequence[Job], states: Mapping[str, _State], executor: Executor) -> None:
    if len(states) != len(jobs):
        raise ValueError(f"names of jobs must differ; got {[job.name for job in jobs]}.")
    before: set[str] = set()
    for job in jobs:
        if missing := set(job.after) - before:
            raise ValueError(
                f"job {job.name!r} comes after {sorted(missing)}, which no earlier job is. List "
                f"what it needs before it; there are {list(states)}."
            )
        before.add(job.name)
        if not callable(job.parameters):
            job.run().check()
        executor.check(job.needs, job.processes)


def _advance(
    states: Mapping[str, _State], executor: Executor, retry_failed: bool, console: Console
) -> bool:
    """Take ends, start what can be started; whether anything is left to wait for."""
    for state in states.values():
        if state.handle is not None:
            _take_end(state, executor)
    for state in states.values():
        if state.status != "waiting":
            continue
        needed = [states[name] for name in state.job.after]
        if lost := [o.name for o in needed if o.status.startswith(("failed", "not run"))]:
            state.status, state.message = "not run", "not run: " + ", ".join(lost)
        elif all(one.finished for one in needed):
            hashes = {o.name: o.run.hash for o in needed}
            _start(state, hashes, executor, retry_failed, console)
    return any(state.handle or state.status == "waiting" for state in states.values())


def _take_end(state: _State, executor: Executor) -> None:
    if state.status == "queued" and executor.begun(state.handle):
        state.status, state.started = "running", time.time()
    try:
        code = executor.poll(state.handle)
        if code is None:
            return
        state.result, state.status = finish_run(state.run, code), "done"
        state.started = time.time() - state.result["seconds"]
    except RunFailed as failure:
        state.status, state.message = "failed", str(failure)
    state.handle, state.ended = None, time.time()


def _start(
    state: _State,
    inputs: Mapping[str, str],
    executor: Executor,
    retry_failed: bool,
    console: Console,
) -> None:
    try:
        run = state.run = state.run or state.job.run(inputs)
    except (ValueError, RunFolderError) as error:  # parameters made of results that are not there
        state.status, state.message, state.ended = "failed", str(error), time.time()
        return
    if (result := run.result) is not None:
        state.result, state.status = result, "kept"
    elif not retry_failed and (reason := run.failure) is not None:
        state.status, state.message = "failed earlier", reason
    elif executor.fits(state.job.needs):
        run.check()
        if told := told_anew(run):
            console.print(f"{state.name}: {told}", markup=False, highlight=False, soft_wrap=True)
        try:
            state.handle, state.status = executor.start(run, state.job.needs), "queued"
        except RunFailed as failure:
            state.status, state.message, state.ended = "failed", str(failure), time.time()


@contextlib.contextmanager
def _stopping(states: Mapping[str, _State], executor: Executor) -> Iterator[None]:
    """Whatever ends the block, no run goes on behind it."""

    def on_term(*_: Any) -> None:
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, on_term) if main else None
    try:
        yield
    finally:
        executor.stop([s.handle for s in states.values() if s.handle is not None])
        if main:
            signal.signal(signal.SIGTERM, before)


_REFERENCE = re.compile(r"\$\{([^{}]*)\}")
_DEEP = 20  # references in references


@dataclass(frozen=True)
class Place:
    """Where in the sweep a job stands."""

    variant: str
    seed: int
    step: str


@dataclass
class _Scope:
    """What the references of one run mean.

    Attributes:
        results: Reads a field of a result; None while collecting.
        used: Names of values that were asked for.
        after: Places that were asked for.
        deferred: Whether a result was asked for.
    """

    sweep: Sweep
    out: Path
    place: Place
    results: bool
    used: set[str] = field(default_factory=set)
    after: dict[Place, None] = field(default_factory=dict)
    deferred: bool = False

    @property
    def variant(self) -> Variant:
        return self.sweep.variants[self.place.variant]

    def fill(self, value: Any, depth: int = 0) -> Any:
        """A value with its references, at any depth in lists and mappings, filled in."""
        if depth > _DEEP:
            raise ValueError(f"{value!r} refers to itself. Break the circle.")
        if isinstance(value, dict):
            return {self.fill(k, depth): self.fill(v, depth) for k, v in value.items()}
        if isinstance(value, list):
            return [self.fill(one, depth) for one in value]
        if not isinstance(value, str):
            return value
        if whole := _REFERENCE.fullmatch(value):  # alone, it keeps its type
            return self.look_up(whole[1], depth)
        return _REFERENCE.sub(lambda found: self._text(found[1], value, depth), value)

    def _text(self, name: str, within: str, depth: int) -> str:
        value = self.look_up(name, depth)
        if not isinstance(value, str | int | float):
            raise ValueError(f"{within!r}: {name} is {value!r}, which cannot stand inside a text.")
        return str(value)

    def look_up(self, name: str, depth: int) -> Any:
        """What one reference stands for."""
        named = {"seed": self.place.seed, "name": self.place.variant}
        if name in named:
            return named[name]
        if name in self.variant.values:
            self.used.add(name)
            return self.fill(self.variant.values[name], depth + 1)
        path, _, variant = name.partition("@")
        step, *fields = path.split(".")
        if step not in self.sweep.steps:
            known = ["seed", "name", *self.variant.values, *self.sweep.steps]
            close = difflib.get_close_matches(name, known, 1)
            raise ValueError(
                f"${{{name}}} is unknown; "
                + (f"do you mean ${{{close[0]}}}?" if close else f"there are {', '.join(known)}.")
            )
        place = self._other(name, step, variant)
        self.after[place] = None
        folder = folder_of(self.sweep, self.out, place)
        if not fields:
            return str(folder)
        self.deferred = True
        return _field(folder, fields) if self.results else None

    def _other(self, name: str, step: str, variant: str) -> Place:
        other = variant or self.place.variant
        if other not in self.sweep.variants:
            raise ValueError(f"${{{name}}}: the runs are {', '.join(self.sweep.variants)}.")
        about = self.sweep.variants[other]
        if step in about.skip:
            raise ValueError(
                f"${{{name}}}: {other} skips {step}. Give it a value of its own, as "
                f"`list: [{{name: {other}, skip: [{step}], model: ...}}]` does for ${{model}}."
            )
        if not variant:
            order = list(self.sweep.steps)
            if order.index(step) >= order.index(self.place.step):
                raise ValueError(
                    f"${{{name}}}: {self.place.step} does not come after {step}. List the steps in "
                    "the order in which they run."
                )
        seed = self.place.seed if self.place.seed in about.seeds else about.seeds[0]
        return Place(other, seed, step)


def _field(folder: Path, fields: list[str]) -> Any:
    value = read_json(folder / RESULT)
    for name in fields:
        if not isinstance(value, dict) or name not in value:
            raise ValueError(f"{folder / RESULT} has no {'.'.join(fields)}.")
        value = value[name]
    return value


def folder_of(sweep: Sweep, out: Path, place: Place) -> Path:
    """The folder of a run: out/variant/seed-0/step, without the step where there is one."""
    folder = out / place.variant / f"seed-{place.seed}"
    return folder / place.step if sweep.chained else folder


def sweep_jobs(sweep: Sweep, out: str | Path) -> dict[Place, Job]:
    """The runs of a sweep, those that others need first.

    Raises:
        ValueError: a reference, a parameter's name or its type is wrong; nothing has run.
    """
    out = Path(out).resolve()
    declared = {step.notebook: declared_parameters(step.notebook) for step in sweep.steps.values()}
    wanted = [
        Place(variant.name, seed, step)
        for variant in sweep.variants.values()
        for seed in variant.seeds
        for step in sweep.steps
        if step not in variant.skip
    ]
    scopes = {place: _Scope(sweep, out, place, results=False) for place in wanted}
    jobs: dict[Place, Job] = {}
    made: dict[Place, Job] = {}
    for place, scope in scopes.items():
        try:
            made[place] = _job(scope, declared[sweep.steps[place.step].notebook])
        except ValueError as error:
            raise ValueError(f"{_name(sweep, out, place)}: {error}") from None
    _check_all_used(sweep, scopes)

    def add(place: Place, path: tuple[Place, ...]) -> None:
        if place in path:
            told = " → ".join(_name(sweep, out, one) for one in (*path, place))
            raise ValueError(f"runs wait for each other: {told}. Break the circle.")
        if place not in jobs:
            for other in scopes[place].after:
                add(other, (*path, place))
            jobs[place] = made[place]

    for place in wanted:
        add(place, ())
    return jobs


def _name(sweep: Sweep, out: Path, place: Place) -> str:
    return folder_of(sweep, out, place).relative_to(out).as_posix()


def _job(scope: _Scope, declared: Mapping[str, Any]) -> Job:
    step = scope.sweep.steps[scope.place.step]
    said = dict(step.parameters) if scope.sweep.chained else dict(scope.variant.values)
    if "output_dir" in said:
        raise ValueError("output_dir is the run's own folder; leave it out.")
    folder = folder_of(scope.sweep, scope.out, scope.place)
    own = {"output_dir": str(folder), "seed": scope.place.seed}
    said = {**{name: value for name, value in own.items() if name in declared}, **said}
    filled = {name: _filled(scope, value) for name, value in said.items()}
    known = {name: value for name, (value, deferred) in filled.items() if not deferred}
    check_parameters(step.notebook, known)
    check_parameters(step.notebook, dict.fromkeys(filled.keys() - declared.keys()))
    parameters: Mapping[str, Any] | Callable[[], Mapping[str, Any]]
    parameters = {name: value for name, (value, _) in filled.items()}
    if any(deferred for _, deferred in filled.values()):
        # A scope of its own: filling notes what was asked for.
        late = _Scope(scope.sweep, scope.out, scope.place, results=True)

        def parameters() -> dict[str, Any]:
            return {name: late.fill(value) for name, value in said.items()}

    return Job(
        _name(scope.sweep, scope.out, scope.place),
        step.notebook,
        parameters,
        folder,
        tuple(_name(scope.sweep, scope.out, place) for place in scope.after),
        Needs(step.gpus),
        scope.out,
        step.timeout,
        step.processes,
        step.accelerate,
    )


def _filled(scope: _Scope, value: Any) -> tuple[Any, bool]:
    scope.deferred = False
    return scope.fill(value), scope.deferred


def _check_all_used(sweep: Sweep, scopes: Mapping[Place, _Scope]) -> None:
    if not sweep.chained:
        return
    used = set().union(*(scope.used for scope in scopes.values()))
    given = {name for variant in sweep.variants.values() for name in variant.values}
    if idle := sorted(given - used):
        raise ValueError(
            f"no step refers to ${{{idle[0]}}}; a value that nothing reads would change nothing. "
            "Refer to it in a step's parameters, or leave it out."
        )


STYLES = {"done": "green", "stale": "yellow", "begun": "cyan", "failed": "red"}


@dataclass(frozen=True)
class Planned:
    """A run and how it stands.

    Attributes:
        state: "done"; "stale": made by other parameters, code or versions, and will run anew;
            "begun": will go on; "failed"; "new".
        why: What changed, how far it is, or the reason of the failure.
        expected: Seconds that it still takes, from finished siblings; None if nobody knows.
    """

    place: Place
    job: Job
    state: str
    why: str
    expected: float | None


def plan_sweep(jobs: Mapping[Place, Job]) -> list[Planned]:
    """How each run stands, in order.

    Args:
        jobs: Of `sweep_jobs`.
    """
    runs: dict[str, NotebookRun] = {}
    stands: dict[Place, tuple[str, str]] = {}
    for place, job in jobs.items():
        try:
            run = job.run({name: runs[name].hash for name in job.after})
        except (KeyError, ValueError, RunFolderError):  # it reads results that are not there yet
            stands[place] = ("new", f"after {', '.join(job.after)}")
            continue
        runs[job.name] = run
        stands[place] = _stands(run)
    took = {place: _seconds(job.folder) for place, job in jobs.items()
            if stands[place][0] == "done"}  # fmt: skip
    return [
        Planned(place, job, *stands[place], _expected(place, job, stands[place][0], took))
        for place, job in jobs.items()
    ]


def _stands(run: NotebookRun) -> tuple[str, str]:
    if run.result is not None:
        return "done", ""
    if (changes := run.changes) is not None:
        return "stale", "; ".join(changes)
    if (reason := run.failure) is not None:
        return "failed", reason
    if (run.folder / RUN).exists():
        done, total, unit = _progress(run.folder)
        return "begun", f"{done:,} of {total:,} {unit}" if total else "stopped at its start"
    return "new", ""


def _progress(folder: Path) -> tuple[int, int, str]:
    try:
        progress = read_json(folder / PROGRESS)
        return progress["done"], progress["total"], progress["unit"]
    except (RunFolderError, KeyError, TypeError):
        return 0, 0, ""


def _seconds(folder: Path) -> float:
    try:
        return float(read_json(folder / RESULT)["seconds"])
    except (RunFolderError, KeyError, TypeError):
        return 0.0


def _expected(place: Place, job: Job, state: str, took: Mapping[Place, float]) -> float | None:
    """Seconds still to go: what siblings took, of the same variant if there are any."""
    if state == "done":
        return 0.0
    same_step = {other: s for other, s in took.items() if other.step == place.step}
    closest = [s for other, s in same_step.items() if other.variant == place.variant]
    if not same_step:
        return None
    whole = statistics.median(closest or same_step.values())
    done, total, _ = _progress(job.folder) if state == "begun" else (0, 0, "")
    return whole * (1 - done / total) if total else whole


def seconds_left(planned: Sequence[Planned], workers: int) -> float | None:
    """Expected time of all that is not done; None if a kind of run has never finished."""
    expected = [one.expected for one in planned]
    if any(seconds is None for seconds in expected):
        return None
    longest = max(expected, default=0.0)
    return max(longest, sum(expected) / max(1, workers))


def plan_table(planned: Sequence[Planned], title: str) -> Table:
    """The plan for a terminal or a notebook."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("time", no_wrap=True, justify="right")
    table.add_column("", overflow="fold")
    for one in planned:
        told = "" if not one.expected else f"~{clock(one.expected)}"
        style = STYLES.get(one.state, "dim")
        table.add_row(Text(one.job.name), Text(one.state, style=style), told, Text(one.why))
    return table


def plan_line(planned: Sequence[Planned], workers: int) -> str:
    """The plan in a sentence."""
    counts = {state: sum(one.state == state for one in planned)
              for state in ("done", "stale", "begun", "failed", "new")}  # fmt: skip
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    left = seconds_left(planned, workers)
    if left is None:
        time = "The time is unknown until a run of every step has finished."
    else:
        time = f"About {clock(left)} to go, {workers} at a time, by what finished siblings took."
    return f"{len(planned)} runs: {told}. {time}"


class LiveExpectation:
    """Time left of a running sweep, from the states of its jobs, by what finished runs took.

    Args:
        jobs: Those that are run.
        workers: Runs at a time.
    """

    def __init__(self, jobs: Mapping[Place, Job], workers: int):
        self.jobs, self.workers = jobs, workers
        self._took: dict[Place, float] = {}

    def __call__(self, statuses: Mapping[str, str]) -> float | None:
        """Seconds; None if a kind of run has never finished.

        Args:
            statuses: Name of a job to its status in `run_jobs`.
        """
        left = []
        for place, job in self.jobs.items():
            if statuses[job.name] in ("done", "kept") and place not in self._took:
                self._took[place] = _seconds(job.folder)
        for place, job in self.jobs.items():
            status = statuses[job.name]
            if status == "running":
                left.append(self._of_running(place, job))
            elif status in ("waiting", "queued"):
                left.append(_expected(place, job, "new", self._took))
        if not left or any(seconds is None for seconds in left):
            return None
        return max(max(left), sum(left) / max(1, self.workers))

    def _of_running(self, place: Place, job: Job) -> float | None:
        try:
            told = read_json(job.folder / PROGRESS)["seconds_left"]
        except (RunFolderError, KeyError, TypeError):
            told = None
        return told if told is not None else _expected(place, job, "begun", self._took)


def check_settings(sweep: Sweep, jobs: Mapping[Place, Job]) -> None:
    """Build every run's training config as its notebook will, and look up its task by name.

    Nothing is loaded: models and datasets of the hub need not be reachable.

    Raises:
        ValueError: a preset, a task or a setting is unknown, or settings do not go together.
    """
    seen: set[str] = set()
    for place, job in jobs.items():
        if callable(job.parameters):
            continue  # made of results that are not there yet
        said = {k: v for k, v in job.parameters.items() if k not in ("output_dir", "seed")}
        once = json.dumps([place.step, said], sort_keys=True)
        if once in seen:  # seeds differ in nothing that is checked
            continue
        seen.add(once)
        values = {**declared_parameters(job.notebook), **job.parameters}
        try:
            check_values(job.notebook, values, job.processes)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{sweep.name}.yaml: {job.name}: {error}") from error


def check_values(notebook: Path, values: Mapping[str, Any], processes: int = 1) -> None:
    """As `check_settings`, for one notebook with all of its parameters."""
    if "task" in values:
        _check_task(values["task"])
    if "preset" in values and "train_config(" in notebook.read_text(encoding="utf-8"):
        config_of(values, processes)


def _check_task(name: str) -> None:
    from anytime_lab.tasks.problems import BENCHMARKS, COUNTDOWN

    if name != COUNTDOWN and name not in BENCHMARKS and not Path(name).expanduser().is_file():
        raise ValueError(
            f"there is no task {name!r}; choose {COUNTDOWN}, {', '.join(BENCHMARKS)}, or a file."
        )


# Parameters of a training notebook that are no settings of the training itself.
_BESIDE_THE_CONFIG = ("model", "task", "task_options", "lora")


def config_of(values: Mapping[str, Any], processes: int = 1) -> Any:
    """The config that a training notebook makes of its parameters.

    Args:
        values: Of all parameters.
        processes: That it will run on; here their batches are those of one.
    """
    from anytime_lab.train.config import train_config

    given = {name: value for name, value in values.items() if name not in _BESIDE_THE_CONFIG}
    settings, key = dict(given.get("settings") or {}), "per_device_train_batch_size"
    if key in settings:
        settings[key] *= processes
    return train_config(
        **{**given, "settings": settings, "rows_per_batch": given["rows_per_batch"] * processes}
    )


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
