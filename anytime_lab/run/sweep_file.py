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
`${train}` or of another run's `${train@GRPO}`, to what its result says `${train.parameters.seed}`,
and to the facts of training in `FACTS`: `${train.model_within(time)@AR}`. Without a chain, the
values are the notebook's parameters.
"""

import itertools
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
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


# --- the file ------------------------------------------------------------------------------------


def _hold(condition: Callable[[Any], bool]) -> AfterValidator:
    """The description of the field says what is wanted."""

    def check(value: Any) -> Any:
        if not condition(value):
            raise ValueError
        return value

    return AfterValidator(check)


def _are_seeds(seeds: list[int]) -> bool:
    return 0 < len(seeds) == len(set(seeds)) and all(0 <= seed <= LARGEST_SEED for seed in seeds)


Names = Annotated[dict[str, Any], BeforeValidator(lambda said: {} if said is None else said)]
Values = Annotated[list[Any], _hold(bool)]
Seeds = Annotated[list[int], _hold(_are_seeds)]
Devices = Annotated[float, _hold(lambda gpus: gpus >= 0 and (gpus <= 1 or gpus == int(gpus)))]
SEEDS_WANTED = f"a list of different whole numbers from 0 to {LARGEST_SEED:,}"


class StepFile(BaseModel):
    """One notebook of the chain, and what its runs need."""

    model_config = ConfigDict(extra="forbid", strict=True)

    notebook: str = Field(description="the name of a notebook")
    parameters: Names = Field({}, description="names with values")
    gpus: Devices | None = Field(None, description="a number; above 1 it is a whole number")
    processes: int | None = Field(None, ge=1, description="a whole number, 1 or more")
    timeout: float | None = Field(None, ge=0, description="a number of seconds")
    accelerate: str | None = Field(None, description="a file of accelerate's settings")


class SweepFile(StepFile):
    """All that the file says; what a step says stands here where there is no chain."""

    notebook: str | None = Field(None, description="the name of a notebook")
    parameters: None = Field(None, description="nothing; without steps, base has the values")
    steps: dict[str, StepFile] | None = Field(
        None, min_length=1, description="names, each with `notebook` and `parameters`"
    )
    title: str = Field("", description="text")
    base: Names = Field({}, description="names with values")
    scales: dict[str, Names] = Field({}, description="names with values of base")
    grid: dict[str, Values] = Field({}, description="a list of values to try")
    entries: Annotated[list[dict[str, Any]], _hold(bool)] = Field(
        [{}], alias="list", description="a list of mappings"
    )
    seeds: Seeds = Field([0], description=SEEDS_WANTED)
    reference: str = Field("", description="the name of a run")
    notes: list[str] = Field([], description="a list of texts")
    folder: str = Field("", description="text with references, such as ${name}/${step}")
    takes: str = Field("", description="text")
    then: str = Field("", description="text")


class _Entry(BaseModel):
    """What an entry of the list says beside its values."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: Annotated[Any, _hold(lambda name: isinstance(name, str | int | float))] = Field(
        "", description="a name"
    )
    skip: list[str] = Field([], description="a list of steps")
    seeds: Seeds | None = Field(None, description=SEEDS_WANTED)


def _read(kind: type[BaseModel], said: Any, where: str = "") -> Any:
    """The model of what was said, or a sentence about the first thing that cannot be."""
    try:
        return kind.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
    *path, key = first["loc"]
    if path[:1] == ["steps"] and len(path) > 1:
        kind, where, path = StepFile, f"{where}steps: {path[1]}: ", path[2:]
    fields = {about.alias or name: about for name, about in kind.model_fields.items()}
    if first["type"] == "extra_forbidden":
        raise ValueError(f"{where}there is no key {key!r}; {nearest(key, fields)}")
    wanted = fields[(path or [key])[0]].description
    if first["type"] == "missing":
        raise ValueError(f"{where}{key} is missing; expected {wanted}.")
    place = ": ".join(str(part) for part in (*path, key) if isinstance(part, str))
    raise ValueError(f"{where}{place} is {first['input']!r}; expected {wanted}.")


class Step(NamedTuple):
    """One notebook of the chain: its source, parameters with references, and its needs."""

    notebook: Path
    parameters: Mapping[str, Any]
    needs: Needs


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
    name = path.stem if scale is None else f"{path.stem}-{scale}"
    try:
        file = _read(SweepFile, said)
        if scale is not None:
            if scale not in file.scales:
                raise ValueError(f"there is no scale {scale!r}; {nearest(scale, file.scales)}")
            file.base |= file.scales[scale]
        if seeds is not None:
            file.seeds = _read(SweepFile, {"seeds": list(seeds)}).seeds
        return _sweep(path, name, file)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def _sweep(path: Path, name: str, file: SweepFile) -> Sweep:
    if (file.notebook is None) == (file.steps is None):
        raise ValueError("give either `notebook` (one) or `steps` (a chain).")
    only = re.sub(r"^\d+_", "", Path(file.notebook or "").stem)
    said = {only: file} if file.steps is None else file.steps
    steps = {step: _step(path, step, one) for step, one in said.items()}
    count = math.prod(map(len, file.grid.values())) * len(file.entries) * len(file.seeds)
    if count * len(steps) > MOST_RUNS:
        raise ValueError(
            f"grid, list, seeds and steps make {count * len(steps):,} runs; a sweep takes "
            f"{MOST_RUNS:,}. Try fewer values, or share them out over several files."
        )
    variants: dict[str, Variant] = {}
    for entry, point in itertools.product(file.entries, itertools.product(*file.grid.values())):
        variant = _variant(file, entry, dict(zip(file.grid, point, strict=True)), steps)
        if variant.name in variants:
            raise ValueError(
                f"two runs would be called {variant.name!r}; give the entries of list a name of "
                "their own."
            )
        variants[variant.name] = variant
    file.reference = file.reference or next(iter(variants))
    if file.reference not in variants:
        raise ValueError(f"reference is {file.reference!r}; the runs are {', '.join(variants)}.")
    file.title = file.title or path.stem.replace("_", " ")
    file.folder = file.folder or (CHAIN if file.steps else SINGLE)
    return Sweep(name, file, steps, variants)


def _variant(file: SweepFile, entry: Mapping, chosen: Mapping, steps: Mapping) -> Variant:
    said = _read(_Entry, entry, "list: ")
    own = said.model_extra
    if both := sorted(own.keys() & chosen.keys()):
        raise ValueError(f"{', '.join(both)} stands in grid and in list; keep one of them.")
    values = {**file.base, **own, **chosen}
    # A reference is to a value or to a step; without a chain there are no references.
    taken = {"seed", "name", *(("step", *steps) if file.steps else ())}
    if reserved := sorted(taken & values.keys()):
        raise ValueError(
            f"{', '.join(reserved)} cannot be a value of base, grid or list: "
            + ("list the seeds under `seeds`." if "seed" in reserved else "that name is taken.")
        )
    name = str(said.name) or _name_of(own)
    name = ",".join(filter(None, [name, _name_of(chosen)])) or "run"
    _check_name(f"a run would be called {name!r}", name)
    if not set(said.skip) <= set(steps):
        raise ValueError(f"{name}: skip is {said.skip!r}; the steps are {', '.join(steps)}.")
    return Variant(name, values, said.skip, said.seeds or file.seeds)


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


def _step(path: Path, name: str, said: StepFile) -> Step:
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        raise ValueError(f"steps: {name}: a step's name is letters, digits and _; rename it.")
    settings = _accelerate(path, f"steps: {name}", said.accelerate)
    processes = said.processes or (settings["num_processes"] if settings else 1)
    settings = settings and {**settings, "num_processes": processes}
    needs = Needs(said.gpus, processes, said.timeout, settings)
    return Step(find_notebook(said.notebook, path.parent), said.parameters or {}, needs)


def _accelerate(path: Path, where: str, name: str | None) -> dict[str, Any] | None:
    """The settings of a file of accelerate, named by its path from the sweep's."""
    if name is None:
        return None
    file = path.parent / name
    if not file.is_file():
        raise ValueError(f"{where}: there is no {file}; accelerate names a file of its settings.")
    settings = YAML(typ="safe", pure=True).load(file)
    count = settings.get("num_processes") if isinstance(settings, dict) else None
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
    file = name if name.endswith(".ipynb") else f"{name}.ipynb"
    for place in (folder / file, NOTEBOOKS / file):
        if place.is_file():
            return place.resolve()
    shipped = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    raise ValueError(
        f"there is no notebook {name!r}, neither beside the file nor in {NOTEBOOKS}; "
        + nearest(Path(name).stem, shipped)
    )


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
    used: set[str] = field(default_factory=set)  # names of values that were asked for
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
        named = {"seed": self.point.seed, "name": self.point.variant, "step": self.point.step}
        if name in named:
            return named[name]
        values = self.sweep.variants[self.point.variant].values
        if name in values:
            self.used.add(name)
            return self.fill(values[name], depth + 1)
        path, _, variant = name.partition("@")
        step, *fields = path.split(".")
        steps = self.sweep.file.steps or {}
        if step not in steps:
            known = [f"${{{one}}}" for one in (*named, *values, *steps)]
            raise ValueError(f"${{{name}}} is unknown; {nearest(f'${{{name}}}', known)}")
        other = self._other(name, step, variant)
        self.after[other] = None
        folder = self.out / folder_of(self.sweep, other)
        return self._result(folder, fields, depth) if fields else str(folder)

    def _other(self, name: str, step: str, variant: str) -> Point:
        other = variant or self.point.variant
        if other not in self.sweep.variants:
            raise ValueError(f"${{{name}}}: the runs are {', '.join(self.sweep.variants)}.")
        about = self.sweep.variants[other]
        if step in about.skip:
            raise ValueError(
                f"${{{name}}}: {other} skips {step}. Give it a value of its own, as "
                f"`list: [{{name: {other}, skip: [{step}], model: ...}}]` does for ${{model}}."
            )
        order = list(self.sweep.steps)
        if not variant and order.index(step) >= order.index(self.point.step):
            raise ValueError(
                f"${{{name}}}: {self.point.step} does not come after {step}. List the steps in "
                "the order in which they run."
            )
        seed = self.point.seed if self.point.seed in about.seeds else about.seeds[0]
        return Point(other, seed, step)

    def _result(self, folder: Path, fields: list[str], depth: int) -> Any:
        """A fact of training, or a field of the result, once that is there."""
        self.deferred = True
        called = re.fullmatch(r"(\w+)(?:\((\w+)\))?", fields[0])
        fact = FACTS.get(called[1]) if called else None
        arguments = [self.look_up(called[2], depth + 1)] if fact and called[2] else []
        if not self.results:
            return None
        value = read_json(folder / RESULT)
        if fact:
            return fact(folder, *arguments)
        for name in fields:
            if not isinstance(value, dict) or name not in value:
                raise ValueError(
                    f"{folder / RESULT} has no {'.'.join(fields)}, and the facts of training are "
                    f"{', '.join(FACTS)}."
                )
            value = value[name]
        return value


def folder_of(sweep: Sweep, point: Point) -> str:
    """The folder of a run from that of the sweep, such as `GRPO/seed-0/train`."""
    return Scope(sweep, Path(), point).fill(sweep.file.folder)


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
    declared = {step.notebook: declared_parameters(step.notebook) for step in sweep.steps.values()}
    wanted = [
        Point(variant.name, seed, step)
        for variant in sweep.variants.values()
        for seed in variant.seeds
        for step in sweep.steps
        if step not in variant.skip
    ]
    scopes = {point: Scope(sweep, out, point) for point in wanted}
    made: dict[Point, Job] = {}
    names: set[str] = set()
    for point, scope in scopes.items():
        name = scope.fill(sweep.file.folder)
        for part in name.split("/"):
            _check_name(f"a run would lie in {name!r}", part)
        if name in names:
            raise ValueError(f"two runs would lie in {name}; name them apart in `folder`.")
        names.add(name)
        try:
            made[point] = _job(scope, name, declared[sweep.steps[point.step].notebook])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    _check_all_used(sweep, list(scopes.values()))
    jobs: dict[Point, Job] = {}

    def add(point: Point, path: tuple[Point, ...]) -> None:
        if point in path:
            told = " → ".join(made[one].name for one in (*path, point))
            raise ValueError(f"runs wait for each other: {told}. Break the circle.")
        if point not in jobs:
            for other in scopes[point].after:
                add(other, (*path, point))
            jobs[point] = made[point]

    for point in wanted:
        add(point, ())
    return jobs


def _job(scope: Scope, name: str, declared: Mapping[str, Any]) -> Job:
    sweep, step = scope.sweep, scope.sweep.steps[scope.point.step]
    values = sweep.variants[scope.point.variant].values
    said = step.parameters if sweep.file.steps else values
    if "output_dir" in said:
        raise ValueError("output_dir is the run's own folder; leave it out.")
    folder = scope.out / name
    if len(os.fsencode(folder)) > 3000:
        raise ValueError("its path is longer than file systems take; choose a shorter --out.")
    own = {"output_dir": str(folder), "seed": scope.point.seed}
    said = {**{one: value for one, value in own.items() if one in declared}, **said}
    parameters, late = {}, {}
    for one, value in said.items():
        scope.deferred = False
        parameters[one] = scope.fill(value)
        if scope.deferred:
            late[one] = declared.get(one)
    check_parameters(step.notebook, {**parameters, **late})
    if late:  # in a scope of its own: filling notes what was asked for
        parameters = partial(Scope(sweep, scope.out, scope.point, results=True).fill, said)
    after = tuple(folder_of(sweep, other) for other in scope.after)
    return Job(name, step.notebook, parameters, folder, after, step.needs, scope.out)


def _check_all_used(sweep: Sweep, scopes: Sequence[Scope]) -> None:
    texts = Scope(sweep, scopes[-1].out, scopes[-1].point)
    for text in (*sweep.file.notes, sweep.file.takes, sweep.file.then):
        texts.fill(text)
    if sweep.file.steps is None:
        return
    used = set().union(*(scope.used for scope in (*scopes, texts)))
    given = {name for variant in sweep.variants.values() for name in variant.values}
    if idle := sorted(given - used):
        raise ValueError(
            f"no step refers to ${{{idle[0]}}}; a value that nothing reads would change nothing. "
            "Refer to it in a step's parameters, or leave it out."
        )
