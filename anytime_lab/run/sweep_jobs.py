"""A sweep's runs as jobs: references filled in, and each after those whose results it reads."""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anytime_lab.run.executors import Needs
from anytime_lab.run.jobs import Job
from anytime_lab.run.parameters import check_parameters, declared_parameters
from anytime_lab.run.sweep_file import Sweep, Variant
from anytime_lab.store.records import RESULT, read_json

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
