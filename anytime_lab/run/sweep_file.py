"""What a sweep's YAML file may say, and the runs that it means.

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

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from anytime_lab.run.notebook import NOTEBOOKS, check_parameters, declared_parameters, nearest
from anytime_lab.run.process import RUN, Job, Needs
from anytime_lab.store.files import METRICS, RESULT, read_json, read_jsonl

MOST_RUNS = 10_000
LARGEST_SEED = 2**32 - 1  # of numpy
LONGEST_NAME = 200  # bytes; file systems take 255, and files beside a folder add to its name
DEEP = 20  # references in references
CHAIN, SINGLE = "${name}/seed-${seed}/${step}", "${name}/seed-${seed}"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._=,'+-]*")
_REFERENCE = re.compile(r"\$\{([^{}]*)\}")
_STEP = re.compile(r"(?P<step>\w+)(\.(?P<fact>[^@()]+)(\((?P<of>\w+)\))?)?(@(?P<variant>.+))?")


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


class Sweep(NamedTuple):
    """A checked file, with its defaults in place."""

    name: str
    file: SweepFile
    steps: Mapping[str, Step]
    variants: Mapping[str, Variant]


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


def load_sweep(
    path: str | Path,
    scale: str | None = None,
    seeds: Sequence[int] | None = None,
) -> Sweep:
    """Read the file of a sweep.

    Args:
        scale: One of the file's scales; its name joins the sweep's.
        seeds: In place of the file's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no YAML, or says what cannot be; the message names the place and the fix.
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
        return _sweep(path.stem, scale, _read(said, path.parent))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def _sweep(stem: str, scale: str | None, file: SweepFile) -> Sweep:
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
        "title": file.title or stem.replace("_", " "),
        "folder": file.folder or (CHAIN if file.steps else SINGLE),
        "reference": reference,
    }
    name = stem if scale is None else f"{stem}-{scale}"
    return Sweep(name, file.model_copy(update=said), steps, variants)


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
    return math.ceil(10 * read_jsonl(run / METRICS)[-1]["seconds"]) / 10


def updates_within(run: Path, seconds: float) -> int:
    """Updates of the last checkpoint that a run had made after some seconds of training.

    0 where it had made none: all that it had by then was the model that it started from.
    """
    saved = {int(folder.name.split("-")[1]) for folder in run.glob("checkpoint-*")}
    spent = {line["step"]: line["seconds"] for line in read_jsonl(run / METRICS)}
    return max((step for step in saved if spent.get(step, math.inf) <= seconds), default=0)


def model_within(run: Path, seconds: float) -> str:
    """That checkpoint, or the model that the run started from."""
    if step := updates_within(run, seconds):
        return str(run / f"checkpoint-{step}")
    about = read_json(run / RUN)
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

    sweep: Sweep
    out: Path
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
        folder = self.out / folder_of(self.sweep, point)
        if fact is None:
            return str(folder)
        self.deferred = True
        arguments = [self.look_up(parts["of"], depth + 1)] if parts["of"] else []
        if not self.results:
            return None
        read_json(folder / RESULT)  # facts are those of a finished run
        return FACTS[fact](folder, *arguments)


def folder_of(sweep: Sweep, point: Point) -> str:
    """The folder of a run from that of the sweep, such as `GRPO/seed-0/train`."""
    return str(Scope(sweep, Path(), point).fill(sweep.file.folder))


def told(sweep: Sweep, out: Path, text: str, results: bool = False) -> str:
    """A text of the file with its references filled in, as seen from the last of the runs."""
    last = sweep.variants[next(reversed(sweep.variants))]
    point = Point(last.name, last.seeds[0], next(reversed(sweep.steps)))
    return str(Scope(sweep, out, point, results).fill(text))


# --- the runs ------------------------------------------------------------------------------------


def sweep_jobs(sweep: Sweep, out: str | Path) -> dict[Point, Job]:
    """The runs of a sweep, those that others need first.

    Raises:
        ValueError: a reference, a parameter's name or its type is wrong; nothing has run.
    """
    out = Path(out).resolve()
    jobs: dict[Point, Job] = {}
    names: set[str] = set()

    def add(point: Point, path: tuple[Point, ...] = ()) -> None:
        if point in path:
            circle = " → ".join(folder_of(sweep, one) for one in (*path, point))
            raise ValueError(f"runs wait for each other: {circle}. Break the circle.")
        if point in jobs:
            return
        scope = Scope(sweep, out, point)
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
    for text in (*sweep.file.notes, sweep.file.takes, sweep.file.then):
        told(sweep, out, text)
    if sweep.file.steps:
        _check_all_used(sweep)
    return jobs


def _job(scope: Scope) -> Job:
    sweep, step = scope.sweep, scope.sweep.steps[scope.point.step]
    name = folder_of(sweep, scope.point)
    for part in name.split("/"):
        _check_name(f"a run would lie in {name!r}", part)
    declared = declared_parameters(step.notebook)
    values = sweep.variants[scope.point.variant].values
    said = step.parameters if sweep.file.steps else values
    folder, parameters, late = scope.out / name, {}, False
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
        parameters = partial(Scope(sweep, scope.out, scope.point, results=True).fill, said)
    after = tuple(folder_of(sweep, other) for other in scope.after)
    needs = Needs(**{name: getattr(step, name) for name in Needs.model_fields})
    return Job(name, step.notebook, parameters, folder, after, needs)


def _check_all_used(sweep: Sweep) -> None:
    values = [variant.values for variant in sweep.variants.values()]
    said = str((sweep.file, values))  # all that may hold a reference
    idle = {name for of in values for name in of if f"${{{name}}}" not in said}
    if idle := sorted(name for name in idle if f"({name})" not in said):  # a fact's argument
        raise ValueError(
            f"no step refers to ${{{idle[0]}}}; a value that nothing reads would change nothing. "
            "Refer to it in a step's parameters, or leave it out."
        )
