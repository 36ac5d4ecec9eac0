"""One notebook run is one folder: parameters, executed notebook, log, results, `result.json` last.

A run is done only if its result is there and was made by the same notebook, parameters and code;
else it runs (again), and what the notebook itself can resume is resumed. Papermill runs in a
process of its own, so that a dead kernel or a kill is seen as a failure, with its reason.
"""

import ast
import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import papermill
import psutil

from anytime_lab.records import RESULT, read_json, write_json

RUN = "run.json"
EXECUTED = "notebook.ipynb"
LOG = "log.txt"
PACKAGES = ("anytime-lab", "torch", "transformers", "trl", "datasets")
NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


class RunFailed(RuntimeError):
    """A notebook run ended without a result; the message says why and where its log is."""


@dataclass(frozen=True)
class NotebookRun:
    """A notebook with parameters and the folder of its run.

    Attributes:
        notebook: Path of the source.
        parameters: Overrides of the cell tagged `parameters`, JSON values only.
        folder: Where everything about the run goes.
    """

    notebook: Path
    parameters: Mapping[str, Any]
    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "notebook", Path(self.notebook).resolve())
        object.__setattr__(self, "folder", Path(self.folder).resolve())

    @property
    def hash(self) -> str:
        """Of all that decides the result: code of the notebook, parameters, library versions."""
        source = json.loads(self.notebook.read_text(encoding="utf-8"))
        code = ["".join(c["source"]) for c in source["cells"] if c["cell_type"] == "code"]
        said = {"code": code, "parameters": dict(self.parameters), "versions": versions()}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    @property
    def result(self) -> dict[str, Any] | None:
        """What a finished run with the same hash left; None if it has to run."""
        try:
            result = read_json(self.folder / RESULT)
        except Exception:  # noqa: BLE001  (absent or torn: the run is not done)
            return None
        return result if result.get("hash") == self.hash else None

    def check(self) -> None:
        """Refuse what papermill would only warn about.

        Raises:
            FileNotFoundError: there is no such notebook.
            ValueError: a parameter is unknown, or no JSON value of the declared type.
        """
        if not self.notebook.is_file():
            raise FileNotFoundError(
                f"there is no notebook {self.notebook}; {NOTEBOOKS} holds "
                f"{', '.join(sorted(p.name for p in NOTEBOOKS.glob('*.ipynb')))}."
            )
        declared = papermill.inspect_notebook(str(self.notebook))
        for name, value in self.parameters.items():
            if name not in declared:
                raise ValueError(
                    f"{self.notebook.name} has no parameter {name!r}; it has {', '.join(declared)}."
                )
            _check_value(self.notebook.name, name, value, declared[name])


def versions() -> dict[str, str]:
    """Versions of the packages that decide a result."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


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
        f"{' or '.join(kinds)}, such as {default}."
    )


def declared_parameters(notebook: str | Path) -> dict[str, Any]:
    """Names and default values of a notebook's parameters."""
    declared = papermill.inspect_notebook(str(notebook))
    return {name: ast.literal_eval(about["default"]) for name, about in declared.items()}


def start_run(run: NotebookRun, environment: Mapping[str, str] | None = None) -> subprocess.Popen:
    """Start a run in a process group of its own; `finish_run` takes its end.

    Args:
        run: Checked beforehand.
        environment: Added to this process's own, such as `OMP_NUM_THREADS`.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / RESULT).unlink(missing_ok=True)
    write_json(
        run.folder / RUN,
        {
            "notebook": str(run.notebook),
            "parameters": dict(run.parameters),
            "hash": run.hash,
            "versions": versions(),
            "started": time.time(),
        },
    )
    # The kernel named python3 shall be this environment's, whatever the user has installed.
    surroundings = {**os.environ, "JUPYTER_PREFER_ENV_PATH": "1", **(environment or {})}
    with open(run.folder / LOG, "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "anytime_lab.launch", str(run.folder)],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=surroundings,
            start_new_session=True,
        )


def finish_run(run: NotebookRun, code: int) -> dict[str, Any]:
    """The result of a run whose process has ended.

    Raises:
        RunFailed: it ended without a result.
    """
    if code == 0 and (result := run.result) is not None:
        return result
    raise RunFailed(f"{run.folder.name}: {_reason(run.folder, code)}. Log: {run.folder / LOG}")


_ERROR = re.compile(r"[\w.]*(Error|Exception|Died|Interrupt|Failed)\b")


def _reason(folder: Path, code: int) -> str:
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
    process = start_run(run, environment)
    try:
        code = process.wait()
    except BaseException:
        stop_run(process)
        raise
    return finish_run(run, code)


def _execute(folder: Path) -> None:
    """What the process of a run does: papermill, then the result."""
    about = read_json(folder / RUN)
    started = time.time()
    papermill.execute_notebook(
        about["notebook"],
        str(folder / EXECUTED),
        parameters=about["parameters"],
        kernel_name="python3",
        cwd=str(Path(about["notebook"]).parent),
        progress_bar=False,
        log_output=True,
        store_widget_state=False,  # one figure widget adds 5 MB
    )
    write_json(
        folder / RESULT,
        {
            "hash": about["hash"],
            "notebook": Path(about["notebook"]).name,
            "parameters": about["parameters"],
            "seconds": time.time() - started,
            "finished": time.time(),
        },
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m anytime_lab.launch FOLDER` runs what FOLDER/run.json says."""
    (folder,) = sys.argv[1:] if arguments is None else arguments
    # The kernel has to die with this process: SIGTERM becomes an exception that papermill sees.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _execute(Path(folder))


if __name__ == "__main__":
    main()
