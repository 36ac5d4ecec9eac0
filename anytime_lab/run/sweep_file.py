"""The YAML file of a sweep: what it may hold, and what is refused with the fix.

    title: What the comparison says            # optional
    notebook: 02_train                         # one notebook, or steps: a chain of them
    base: {max_steps: 50}                      # values of every run
    grid: {learning_rate: [1e-4, 3e-4]}        # all combinations …
    list:                                      # … of each of these
      - {name: GRPO, preset: grpo}
      - {name: AR, preset: ar_uniform}
    seeds: [0, 1]

With one notebook the values are its parameters. In a chain each step names its notebook and
parameters, and ``${…}`` puts in a value, or what another step left:

    steps:
      train: {notebook: 02_train, parameters: {preset: "${preset}"}}
      evaluate: {notebook: 03_evaluate, parameters: {model: "${train}/model"}}

``${train}`` is the folder of the step `train` of the same run, ``${train@GRPO}`` of the run named
GRPO with the same seed, ``${train.seconds}`` a field of its result.

A step, or the file of one notebook, may also say `gpus` (devices of a run), `processes` (a kernel
for each, with copies of the model), `accelerate` (a file of accelerate's settings, by which its
processes are started and the model is sharded) and `timeout` (seconds). `gpus` may be a share of
one. An entry of list may have a `name`, `seeds` of its own and steps to `skip`; the file a
`reference` that the others are compared with, and `notes` for the page. Numbers are read as people
write them: 1e-6 is a number (plain YAML makes it a string), yes and no are strings.
"""

import difflib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from anytime_lab.run.parameters import NOTEBOOKS


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
