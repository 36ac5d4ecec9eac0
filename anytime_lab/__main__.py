"""The command line: `python -m anytime_lab VERB`; without a verb it lists them.

Only the chosen verb imports what it needs, so that help is there at once.
"""

import contextlib
import json
import os
import signal
import sys
from argparse import REMAINDER, ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

FAILED, WRONG, STOPPED = 1, 2, 130  # exit statuses

# Arguments of the verbs: name → settings of argparse.
OF_ALL_SWEEPS: dict[str, dict[str, Any]] = {
    "--out": {"help": "folder of the results (runs/NAME)"},
    "--scale": {"help": "one of the file's scales, such as smoke"},
    "--jobs": {"type": int, "help": "runs at a time (one a GPU, or by the cores)"},
    "--fresh": {"action": "store_true", "help": "remove earlier results first"},
}
LAB = {
    **OF_ALL_SWEEPS,
    "--seed": {"type": int, "default": 0, "help": "of training and evaluation (0)"},
}
SWEEP = {
    "file": {"help": "such as experiments/quickstart.yaml"},
    **OF_ALL_SWEEPS,
    "--dry-run": {"action": "store_true", "help": "check and show the plan, no more"},
    "--only": {
        "nargs": "+", "default": [], "metavar": "PATTERN", "help": "runs to take, such as 'ar_*'"
    },
    "--executor": {"default": "local", "help": "local, this machine; or ray, a Ray cluster"},
    "--storage": {
        "metavar": "URL", "help": "where nodes leave results that share no file system"
    },
    "--retry-failed": {"action": "store_true", "help": "try failed runs again"},
    "--seeds": {"type": int, "nargs": "+", "help": "in place of the file's"},
}  # fmt: skip
PREFLIGHT = {
    "--model": {"default": "embedded", "help": "embedded, a folder, or a name on the hub"},
    "--task": {"default": "countdown", "help": "a task, a benchmark, or a file of problems"},
    "--preset": {"default": "ar_uniform", "help": "a published one, such as grpo (ar_uniform)"},
    "--budgets": {"type": int, "nargs": "+", "default": [24, 48, 72, 96]},
    "--settings": {"type": json.loads, "default": {}, "help": "fields of BRPOConfig as JSON"},
    "--records": {"help": "run folder of an evaluation of this model"},
    "--device": {"help": "of the data sheets, such as a100; what is here by default"},
    "--devices": {"type": int, "help": "how many share the run"},
    "--sharding": {
        "default": "none", "choices": ("none", "zero2", "zero3"), "help": "FSDP is zero3"
    },
    "--dtype": {"default": "bfloat16", "choices": ("bfloat16", "float16", "float32")},
    "--trainable": {"type": int, "help": "parameters of an adapter; all weights by default"},
}  # fmt: skip
SERVE = {"notebook": {}, "options": {"nargs": REMAINDER, "help": "of voila, such as --port=8866"}}
PICTURES = {"notebook": {"nargs": "+"}}


def _sweep(given: Namespace) -> int:
    print(f"Checking {Path(given.file).name}; the plan and how long it takes follow.", flush=True)
    from anytime_lab.run.places import open_place
    from anytime_lab.run.process import RunFailed
    from anytime_lab.run.sweep import prepare_sweep, run_sweep

    if given.jobs is not None and given.jobs < 1:
        raise ValueError(f"--jobs is {given.jobs}; expected at least 1.")
    asked = (given.only, given.storage, given.scale, given.seeds)
    sweep = prepare_sweep(given.file, given.out, *asked)
    if given.fresh and not given.dry_run:
        sweep.remove()
    place = open_place(given.executor, sweep.out, given.jobs, given.storage)
    with contextlib.closing(place):
        sweep.show(place.width)
        if given.dry_run:
            return 0
        try:
            run_sweep(sweep, None, given.retry_failed, place)
        except RunFailed as failure:
            told = "Some runs failed; the same command runs what was not run, with --retry-failed "
            _complain(f"{told}the failed ones again.\n{failure}")
            return FAILED
    return 0


def _lab(given: Namespace) -> int:
    from anytime_lab.run.notebook import ROOT

    os.environ["HF_HUB_OFFLINE"] = "1"  # the main job needs nothing from outside
    given.file = ROOT / "experiments" / "lab.yaml"
    given.seeds, given.only, given.dry_run, given.retry_failed = [given.seed], [], False, True
    given.executor, given.storage = "local", None
    return _sweep(given)


def _pictures(given: Namespace) -> int:
    from anytime_lab.look.pictures import add_pictures

    for path in given.notebook:
        print(f"{path}: {add_pictures(path)} pictures added")
    return 0


def _of(module: str) -> Callable[[Namespace], int]:
    """The function `command` of a module, which is imported when it is called."""
    return lambda given: import_module(module).command(given)


VERBS: dict[str, tuple[str, dict[str, dict[str, Any]], Callable[[Namespace], int]]] = {
    "lab": ("train GRPO and AnytimeReasoner, evaluate and compare", LAB, _lab),
    "sweep": ("run what a YAML file says, and go on where it was", SWEEP, _sweep),
    "preflight": (
        "what a training takes, and whether it fits", PREFLIGHT, _of("anytime_lab.run.estimate")
    ),
    "doctor": (
        "what this environment can do, and what to install", {}, _of("anytime_lab.run.doctor")
    ),
    "serve": (
        "a notebook as a page without its code, on this machine",
        SERVE, _of("anytime_lab.run.serve"),
    ),
    "pictures": ("a picture beside every figure of notebooks", PICTURES, _pictures),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit status."""
    parser = ArgumentParser("python -m anytime_lab", description="Anytime reasoning: the verbs.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for name, (words, of_the_verb, _) in VERBS.items():
        verb = verbs.add_parser(name, help=words, description=f"{name}: {words}.")
        for argument, settings in of_the_verb.items():
            verb.add_argument(argument, **settings)
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
    from anytime_lab.page import plain, redacted

    print(plain(redacted(told)), file=sys.stderr)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    sys.exit(main())
