"""The command line: `python -m anytime_lab VERB`; without a verb it lists them.

Only the chosen verb imports what it needs, so that help is there at once.
"""

import contextlib
import json
import os
import sys
from argparse import REMAINDER, ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

FAILED, WRONG, STOPPED = 1, 2, 130  # exit statuses


def _sweep_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("file", help="such as experiments/quickstart.yaml")
    _common_arguments(parser)
    add("--dry-run", action="store_true", help="check and show the plan, no more")
    add("--only", nargs="+", default=[], metavar="PATTERN", help="runs to take, such as 'ar_*'")
    add("--executor", default="local", help="local, this machine; or ray, a Ray cluster")
    add("--storage", metavar="URL", help="where nodes leave results that share no file system")
    add("--retry-failed", action="store_true", help="try failed runs again")
    add("--seeds", type=int, nargs="+", help="in place of the file's")
    add("--set", nargs="+", default=[], metavar="NAME=VALUE", help="values of the file's base")


def _common_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", help="folder of the results (runs/NAME)")
    add("--scale", help="one of the file's scales, such as smoke")
    add("--jobs", type=int, help="runs at a time (one a GPU, or by the cores)")
    add("--fresh", action="store_true", help="remove earlier results first")


def _sweep(given: Namespace) -> int:
    from rich.console import Console

    from anytime_lab.run.jobs import JobsFailed
    from anytime_lab.run.places import open_place
    from anytime_lab.run.sweep import prepare_sweep, run_sweep

    if given.jobs is not None and given.jobs < 1:
        raise ValueError(f"--jobs is {given.jobs}; expected at least 1.")
    console = Console()
    changes = {"scale": given.scale, "values": _values(given.set), "seeds": given.seeds}
    prepared = prepare_sweep(given.file, given.out, given.only, given.storage, **changes)
    if given.fresh and not given.dry_run:
        prepared.remove()
    place = open_place(given.executor, prepared.out, given.jobs, given.storage)
    with contextlib.closing(place):
        prepared.show(place.width, console)
        if given.dry_run:
            return 0
        try:
            run_sweep(prepared, None, given.retry_failed, place, console)
        except JobsFailed as failure:
            told = "Some runs failed; the same command runs what was not run, with --retry-failed "
            _complain(f"{told}the failed ones again.\n{failure}")
            return FAILED
    return 0


def _values(said: Sequence[str]) -> dict[str, object]:
    """NAME=VALUE as in YAML: numbers, lists and mappings are read, other text stays."""
    values: dict[str, object] = {}
    for one in said:
        name, equals, value = one.partition("=")
        if not equals:
            raise ValueError(f"--set {one}: expected NAME=VALUE, such as --set updates=10.")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    return values


def _lab_arguments(parser: ArgumentParser) -> None:
    _common_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="of training and evaluation (0)")
    parser.add_argument("--updates", type=int, help="of each training run (60)")


def _lab(given: Namespace) -> int:
    from anytime_lab.run.notebook import ROOT

    if given.updates is not None and given.updates < 1:
        raise ValueError(f"--updates is {given.updates}; expected at least 1.")
    os.environ["HF_HUB_OFFLINE"] = "1"  # the main job needs nothing from outside
    given.file = ROOT / "experiments" / "lab.yaml"
    given.set = [] if given.updates is None else [f"updates={given.updates}"]
    given.seeds, given.only, given.dry_run, given.retry_failed = [given.seed], [], False, True
    given.executor, given.storage = "local", None
    return _sweep(given)


def _preflight_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="embedded", help="embedded, a folder, or a name on the hub")
    add("--task", default="countdown", help="a task, a benchmark, or a file of problems")
    add("--preset", default="ar_uniform", help="a published one, such as grpo (ar_uniform)")
    add("--budgets", type=int, nargs="+", default=[24, 48, 72, 96])
    add("--settings", type=json.loads, default={}, help="fields of BRPOConfig as JSON")
    add("--prompts", type=int, default=64, help="prompts to measure (64)")
    add("--records", help="run folder of an evaluation of this model")
    add("--device", help="of the data sheets, such as a100; what is here by default")
    add("--devices", type=int, help="how many share the run")
    add("--memory", type=float, help="GiB of one device, instead of the data sheet's")
    add("--sharding", default="none", help="none, zero2, or zero3 (FSDP)")
    add("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    add("--trainable", type=int, help="parameters of an adapter; all weights by default")


def _preflight(given: Namespace) -> int:
    from anytime_lab.run.estimate import command

    return command(given)


def _doctor_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--need", nargs="+", help="purposes that have to be ready; by default all not at choice"
    )


def _doctor(given: Namespace) -> int:
    from anytime_lab.run.doctor import command

    return command(given.need)


def _serve_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("notebook")
    parser.add_argument("options", nargs=REMAINDER, help="of voila, such as --port=8866")


def _serve(given: Namespace) -> int:
    from anytime_lab.run.serve import serve

    return serve(given.notebook, given.options)


def _pictures_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("notebook", nargs="+", type=Path)


def _pictures(given: Namespace) -> int:
    from anytime_lab.look.pictures import add_pictures

    for path in given.notebook:
        print(f"{path}: {add_pictures(path)} pictures added")
    return 0


Verb = tuple[str, Callable[[ArgumentParser], None], Callable[[Namespace], int]]
VERBS: dict[str, Verb] = {
    "lab": ("train GRPO and AnytimeReasoner, evaluate and compare", _lab_arguments, _lab),
    "sweep": ("run what a YAML file says, and go on where it was", _sweep_arguments, _sweep),
    "preflight": ("what a training takes, and whether it fits", _preflight_arguments, _preflight),
    "doctor": ("what this environment can do, and what to install", _doctor_arguments, _doctor),
    "serve": ("a notebook as a page without its code, on this machine", _serve_arguments, _serve),
    "pictures": ("a picture beside every figure of notebooks", _pictures_arguments, _pictures),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit status."""
    parser = ArgumentParser("python -m anytime_lab", description="Anytime reasoning: the verbs.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for name, (words, add_arguments, _) in VERBS.items():
        add_arguments(verbs.add_parser(name, help=words, description=f"{name}: {words}."))
    given = parser.parse_args(arguments)
    if given.verb is None:
        parser.print_help()
        return 0
    try:
        return VERBS[given.verb][2](given)
    except Exception as error:
        told = isinstance(error, ValueError | TypeError | OSError | RuntimeError)
        if not told and not type(error).__module__.startswith("anytime_lab"):
            raise
        _complain(str(error))
        return WRONG
    except KeyboardInterrupt:
        _complain("\nStopped; the same command goes on where it was.")
        return STOPPED


def _complain(told: str) -> None:
    from anytime_lab.page import redacted

    print(redacted(told), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
