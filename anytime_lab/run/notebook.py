"""One notebook run is one folder: parameters, executed notebook, log, results, `result.json` last.

A run is done only if its result is there and was made by the same code, parameters, library
versions and input runs; else it runs (again), and what the notebook itself can resume is resumed.
What other parameters or versions had made is never gone on with: it is moved to `.replaced/` inside
the folder. The run is a process of its own (`anytime_lab.run.execute`), so that a dead kernel, a
time-out or a kill is seen as a failure, with its reason; it ends when whoever started it is gone.
"""

import ast
import contextlib
import fcntl
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import papermill
import psutil

from anytime_lab.store.records import (
    RESULT,
    RunFolderError,
    read_json,
    remove_leftovers,
    write_json,
)

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def declared_parameters(notebook: str | Path) -> dict[str, Any]:
    """Names and default values of a notebook's parameters."""
    declared = papermill.inspect_notebook(str(notebook))
    return {name: ast.literal_eval(about["default"]) for name, about in declared.items()}


def check_parameters(notebook: Path, parameters: Mapping[str, Any]) -> None:
    """Refuse what papermill would only warn about.

    Raises:
        FileNotFoundError: there is no such notebook.
        ValueError: a parameter is unknown, or no JSON value of the declared type.
    """
    if not notebook.is_file():
        raise FileNotFoundError(
            f"there is no notebook {notebook}; {NOTEBOOKS} holds "
            f"{', '.join(sorted(p.name for p in NOTEBOOKS.glob('*.ipynb')))}."
        )
    declared = papermill.inspect_notebook(str(notebook))
    for name, value in parameters.items():
        if name not in declared:
            raise ValueError(
                f"{notebook.name} has no parameter {name!r}; it has {', '.join(declared)}."
            )
        _check_value(notebook.name, name, value, declared[name])


_TYPES = {"int": int, "float": (int, float), "str": str, "bool": bool, "list": list, "dict": dict}


def _check_value(notebook: str, name: str, value: Any, declared: Mapping[str, str]) -> None:
    try:
        same = json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError):
        same = False
    if not same:  # papermill would write a tuple as a string
        raise ValueError(
            f"{notebook}: {name} is {value!r}, which JSON cannot hold as it is. Use numbers, "
            "strings, true and false, lists and dicts with string keys."
        )
    kinds = re.split(r"\s*\|\s*", declared.get("inferred_type_name", "").strip())
    if not kinds or any(kind not in (*_TYPES, "None") for kind in kinds):
        return
    for kind in kinds:
        if kind == "None" and value is None:
            return
        if kind in _TYPES and isinstance(value, _TYPES[kind]):
            if isinstance(value, bool) and kind != "bool":
                continue
            return
    default = declared.get("default", "")
    raise ValueError(
        f"{notebook}: {name} is {value!r} ({type(value).__name__}); expected "
        f"{' or '.join(kinds)}, such as {default}.{_fix(value, kinds)}"
    )


def _fix(value: Any, kinds: Sequence[str]) -> str:
    """What to write instead, where the slip is a usual one."""
    if isinstance(value, str) and {"int", "float"} & set(kinds):
        return " Write a number, without quotes or underscores."
    if isinstance(value, str) and "list" in kinds:
        return " Write a list in brackets: [1, 2]."
    if isinstance(value, str) and "bool" in kinds:
        return " Write true or false, without quotes."
    if isinstance(value, float) and "int" in kinds and value.is_integer():
        return f" Write {int(value)}."
    return ""


RUN, FAILURE = "run.json", "failure.json"
EXECUTED = "notebook.ipynb"
LOG, LOCK, REPLACED = "log.txt", ".lock", ".replaced"
MARK = "ANYTIME_LAB_RUN"  # in the environment of every process of a run: its folder
PACKAGES = ("anytime-lab", "torch", "transformers", "trl", "datasets", "vllm")


class RunFailed(RuntimeError):
    """A notebook run ended without a result; the message says why and where its log is."""


@dataclass(frozen=True)
class NotebookRun:
    """A notebook with parameters and the folder of its run.

    Attributes:
        notebook: Path of the source.
        parameters: Overrides of the cell tagged `parameters`, JSON values only.
        folder: Where everything about the run goes.
        root: Paths below it count as the same after all was moved elsewhere; the folder's parent
            if None.
        inputs: Name to hash of the runs whose results it reads.
        timeout: Seconds after which it is stopped and has failed; None for no limit.
        processes: Above 1, a kernel for each, with ranks, for training over several devices.
        accelerate: Settings by which `accelerate launch` starts them (DeepSpeed, FSDP).
    """

    notebook: Path
    parameters: Mapping[str, Any]
    folder: Path
    root: Path | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    processes: int = 1
    accelerate: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "notebook", Path(self.notebook).resolve())
        object.__setattr__(self, "folder", Path(self.folder).resolve())

    @cached_property
    def made_of(self) -> dict[str, Any]:
        """All that decides the result: code, parameters, versions, inputs, processes."""
        source = json.loads(self.notebook.read_text(encoding="utf-8"))
        code = ["".join(c["source"]) for c in source["cells"] if c["cell_type"] == "code"]
        root = str(self.folder.parent if self.root is None else Path(self.root).resolve())
        parameters = json.dumps(dict(self.parameters)).replace(json.dumps(root)[1:-1], "${root}")
        return {
            "code": hashlib.sha256(json.dumps(code).encode()).hexdigest(),
            "parameters": json.loads(parameters),
            "versions": versions(),
            "inputs": dict(self.inputs),
            "processes": self.processes,
            "accelerate": dict(self.accelerate or {}),
        }

    @cached_property
    def hash(self) -> str:
        """Of `made_of`, as it was when this run was first asked."""
        return hashlib.sha256(json.dumps(self.made_of, sort_keys=True).encode()).hexdigest()

    @property
    def result(self) -> dict[str, Any] | None:
        """What a finished run with the same hash left; None if it has to run."""
        result = _read(self.folder / RESULT)
        return result if result.get("hash") == self.hash else None

    @property
    def failure(self) -> str | None:
        """Why the same run failed when it was last tried; None if it did not."""
        failure = _read(self.folder / FAILURE)
        return failure["reason"] if failure.get("hash") == self.hash else None

    @property
    def changes(self) -> list[str] | None:
        """How it differs from the run that the folder holds; None if that is the same, or none."""
        before = _read(self.folder / RUN)
        if not before or before.get("hash") == self.hash:
            return None
        return told_changes(before.get("made_of", {}), self.made_of)

    def check(self) -> None:
        """Refuse what papermill would only warn about.

        Raises:
            FileNotFoundError: there is no such notebook.
            ValueError: a parameter is unknown, or no JSON value of the declared type.
        """
        check_parameters(self.notebook, self.parameters)


def told_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two `made_of`, in words: parameters and versions by name."""
    if not before:
        return ["made by an older anytime_lab"]
    told = ["the notebook's code"] if before.get("code") != now["code"] else []
    for part in ("parameters", "versions"):
        old = before.get(part, {})
        for name in sorted({*old, *now[part]}):
            if old.get(name) != now[part].get(name):
                told.append(f"{name} {_short(old.get(name))} → {_short(now[part].get(name))}")
    old = before.get("inputs", {})
    told += [f"{name} changed" for name in sorted({*old, *now["inputs"]})
             if old.get(name) != now["inputs"].get(name)]  # fmt: skip
    if before.get("accelerate", {}) != now["accelerate"]:
        told.append("the settings of accelerate")
    if before.get("processes", 1) != now["processes"]:
        told.append(f"processes {before.get('processes')} → {now['processes']}")
    return told


def told_anew(run: NotebookRun) -> str:
    """What starting a run will do to another one that its folder holds; empty if there is none."""
    if (changes := run.changes) is None:
        return ""
    return f"made anew ({'; '.join(changes)}); the old files go to {run.folder / REPLACED}."


def _short(value: Any) -> str:
    told = "not given" if value is None else json.dumps(value, ensure_ascii=False)
    return told if len(told) <= 60 else f"{told[:57]}…"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except RunFolderError:  # absent or damaged: as if it were not there
        return {}
    return found if isinstance(found, dict) else {}


def versions() -> dict[str, str]:
    """Versions of the packages that decide a result."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def start_run(run: NotebookRun, environment: Mapping[str, str] | None = None) -> subprocess.Popen:
    """Start a run in a process group of its own; `finish_run` takes its end.

    The process keeps the folder's lock, and ends with its kernel when this process ends.

    Args:
        run: Checked beforehand.
        environment: Added to this process's own, such as `OMP_NUM_THREADS`.

    Raises:
        RunFailed: another process works in the folder.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    with open(run.folder / LOCK, "a+b") as lock:
        _take(lock, run.folder)
        _prepare(run)
        # The kernel named python3 shall be this environment's, whatever the user has installed.
        surroundings = {**os.environ, "JUPYTER_PREFER_ENV_PATH": "1", **(environment or {})}
        surroundings.pop("JUPYTER_PATH", None)
        surroundings[MARK] = str(run.folder)
        with open(run.folder / LOG, "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "anytime_lab.run.execute", str(run.folder)],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.PIPE,  # its end tells the child that this process is gone
                env=surroundings,
                start_new_session=True,
                pass_fds=(lock.fileno(),),
            )


def _take(lock: Any, folder: Path, patience: float = 30.0) -> None:
    """Lock the folder; processes that a killed session left behind get time to end."""
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise RunFailed(
                    f"another process is running in {folder}. Wait for it, or stop it, then run "
                    "the same command again."
                ) from None
            time.sleep(0.05)
        except OSError:
            break  # a file system without locks
    if (folder / RUN).exists():  # a kernel may outlive its launcher by a second
        for process in _leftovers(folder):
            with contextlib.suppress(psutil.Error):
                process.kill()
                process.wait(10)


def _leftovers(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == str(folder) and process.pid != os.getpid():
                found.append(process)
    return found


def _prepare(run: NotebookRun) -> None:
    """Make the folder ready: a different run's files out of the way, then what is to be done."""
    for stale in (RESULT, FAILURE):
        (run.folder / stale).unlink(missing_ok=True)
    before = _read(run.folder / RUN)
    if before and before.get("hash") != run.hash:
        _set_aside(run.folder, str(before.get("hash"))[:12])
    remove_leftovers(run.folder)  # of a writer that was killed; the folder's lock is held here
    write_json(
        run.folder / RUN,
        {
            "notebook": str(run.notebook),
            "parameters": dict(run.parameters),
            "hash": run.hash,
            "made_of": run.made_of,
            "timeout": run.timeout,
            "processes": run.processes,
            "accelerate": dict(run.accelerate or {}),
            "started": time.time(),
        },
    )


def _set_aside(folder: Path, name: str) -> None:
    """Move another run's files to `.replaced/name`; `run.json` last, so that a kill repeats it."""
    target = folder / REPLACED / name
    number = 2
    while (target / RUN).exists():
        target, number = folder / REPLACED / f"{name}-{number}", number + 1
    target.mkdir(parents=True, exist_ok=True)
    left = sorted(path for path in folder.iterdir() if path.name not in (REPLACED, LOCK, RUN))
    for path in [*left, folder / RUN]:
        os.replace(path, target / path.name)


def finish_run(run: NotebookRun, code: int) -> dict[str, Any]:
    """The result of a run whose process has ended; being written last, it counts however that was.

    Raises:
        RunFailed: it ended without a result; the reason is kept in `failure.json`.
    """
    if (result := run.result) is not None:
        return result
    reason = _reason(run.folder, code)
    write_json(run.folder / FAILURE, {"hash": run.hash, "reason": reason, "finished": time.time()})
    raise RunFailed(f"{reason.rstrip('.')}. Log: {run.folder / LOG}")


_ERROR = re.compile(r"[\w.]*(Error|Exception|Died|Interrupt|Failed)\b")


def _reason(folder: Path, code: int) -> str:
    if code == -signal.SIGKILL:
        return "killed by SIGKILL, as the system does when memory runs out"
    if code < 0:
        return f"stopped by signal {signal.Signals(-code).name}"
    try:
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    told = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in lines]
    errors = [line for line in told if _ERROR.match(line)]
    return (errors or [line for line in told if line] or [f"exit status {code}"])[-1][:500]


def stop_run(process: subprocess.Popen, patience: float = 10.0) -> None:
    """Stop a run with its kernel and whatever that started; files stay as they are."""
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.terminate()
    _, alive = psutil.wait_procs(family, timeout=patience)
    for member in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def run_notebook(
    notebook: str | Path,
    parameters: Mapping[str, Any],
    folder: str | Path,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run a notebook into a folder, unless it holds the result already.

    Returns:
        The content of `result.json`.

    Raises:
        ValueError: a parameter is wrong; nothing has run.
        RunFailed: the notebook failed; a second call resumes what can be.
    """
    run = NotebookRun(Path(notebook), parameters, Path(folder))
    run.check()
    if (result := run.result) is not None:
        return result
    if told := told_anew(run):
        warnings.warn(f"{run.folder.name}: {told}", stacklevel=2)
    process = start_run(run, environment)
    try:
        code = process.wait()
    except BaseException:
        stop_run(process)
        raise
    return finish_run(run, code)
