"""One notebook run is one folder: what it was made of, its process, its log, `result.json` last.

A run is done only if its result is there and was made by the same code, parameters, library
versions and input runs; else it runs (again), and what the notebook itself can resume is resumed.
What other parameters or versions had made is never gone on with: it is moved to `.replaced/` inside
the folder. The run is a process of its own, so that a dead kernel, a time-out or a kill is seen as
a failure, with its reason. Its folder is locked for so long, and it ends, with its kernel and
whatever that has started, on SIGTERM, at its time limit, and when who started it is gone.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import psutil
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from anytime_lab.page import redacted, short
from anytime_lab.run.notebook import SECRETS, code_cells, hide_secrets
from anytime_lab.store import files, manifest

RUN, FAILURE = "run.json", "failure.json"
EXECUTED = "notebook.ipynb"
LOG, LOCK, REPLACED = "log.txt", ".lock", ".replaced"
ACCELERATE = "accelerate.yaml"  # in the folder of a run that accelerate launches
MARK = "ANYTIME_LAB_RUN"  # in the environment of every process of a run: its folder
PACKAGES = ("anytime-lab", "torch", "transformers", "trl", "datasets", "vllm")
PATIENCE = 30  # seconds in which processes that a killed session left behind end
LOOK = 1.0  # seconds between looks at a run
KERNEL_START = 300  # seconds; a busy machine takes longer than papermill's 60
versions_of = cache(manifest.versions_of)  # 17 ms; a plan asks it of every run, again and again


class RunFailed(RuntimeError):
    """Notebook runs ended without a result; the message says why and where their logs are."""


def _devices(gpus: float) -> float:
    if gpus > 1 and gpus != int(gpus):
        raise ValueError(f"gpus is {gpus}; expected a share of one, or a whole number.")
    return gpus


class Needs(BaseModel):
    """What a run asks of a machine."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    # Devices, or the share of one; None takes an even share of what there is
    gpus: Annotated[float, Field(ge=0), AfterValidator(_devices)] | None = None
    # Settings by which `accelerate launch` starts the processes (DeepSpeed, FSDP)
    accelerate: Mapping[str, Any] | None = None
    # Above 1, a kernel for each, with ranks, for training over several devices
    processes: int = Field(
        ge=1, default_factory=lambda said: (said.get("accelerate") or {}).get("num_processes", 1)
    )
    # Seconds after which it is stopped and has failed; None for no limit
    timeout: Annotated[float, Field(ge=0)] | None = None


@dataclass(frozen=True)
class Job:
    """A notebook with parameters, the folder of its run, and what has to be finished before it."""

    name: str  # unique; what tables show
    notebook: Path  # the source; this path and those below are absolute
    # Overrides of the cell tagged `parameters`, JSON values only; or a function that makes them
    # once `after` is finished, see `run`
    parameters: Mapping[str, Any] | Callable[[], Mapping[str, Any]]
    folder: Path  # where everything about the run goes
    # Names of jobs whose results it reads; when one of them has changed, this runs again
    after: tuple[str, ...] = ()
    needs: Needs = Needs()  # of a machine
    inputs: Mapping[str, str] = field(default_factory=dict)  # hashes of `after`, by name

    def run(self, inputs: Mapping[str, str] | None = None) -> "Job":
        """The job with its parameters made, which tells how its folder stands and can be run."""
        made = self.parameters() if callable(self.parameters) else self.parameters
        return replace(self, parameters=made, inputs=inputs or {})

    @property
    def root(self) -> Path:
        """The folder that the name is from; paths below it count as the same if all was moved."""
        return self.folder.parents[self.name.count("/")]

    @cached_property
    def made_of(self) -> dict[str, Any]:
        """All that decides the result: code, parameters, versions, inputs, processes."""
        root = str(self.root)
        parameters = json.dumps(hide_secrets(self.parameters)[0])
        code = [source for source, _ in code_cells(self.notebook)]
        return {
            "code": hashlib.sha256(json.dumps(code).encode()).hexdigest(),
            "parameters": json.loads(parameters.replace(json.dumps(root)[1:-1], "${root}")),
            "versions": versions_of(PACKAGES),
            "inputs": dict(self.inputs),
            "processes": self.needs.processes,
            "accelerate": dict(self.needs.accelerate or {}),
        }

    @cached_property
    def hash(self) -> str:
        """Of `made_of`, as it was when this run was first asked."""
        return hashlib.sha256(json.dumps(self.made_of, sort_keys=True).encode()).hexdigest()

    def _left(self, file: str) -> dict[str, Any]:
        """What the same run left in a file; nothing where another one did."""
        found = read_or_nothing(self.folder / file)
        return found if found.get("hash") == self.hash else {}

    @property
    def result(self) -> dict[str, Any] | None:
        """What a finished run with the same hash left; None if it has to run."""
        return self._left(files.RESULT) or None

    @property
    def failure(self) -> str | None:
        """Why the same run failed when it was last tried; None if it did not."""
        return self._left(FAILURE).get("reason")

    @property
    def told_failure(self) -> str:
        """The same as a sentence that says where its log is."""
        return f"{(self.failure or '').rstrip('.')}. Log: {self.folder / LOG}"

    @property
    def stands(self) -> tuple[str, str, float | None]:
        """How its folder stands, why, and the seconds that it still takes, if that tells them.

        done; stale (made by other parameters, code or versions: will run anew) and what changed;
        failed and the reason; begun (will go on) and how far it is; or new.
        """
        before = read_or_nothing(self.folder / RUN)
        if self.result is not None:
            return "done", "", 0.0
        if before and before.get("hash") != self.hash:
            return "stale", told_changes(before.get("made_of", {}), self.made_of), None
        if (reason := self.failure) is not None:
            return "failed", reason, None
        if not before:
            return "new", "", None
        progress = read_or_nothing(self.folder / files.PROGRESS)
        told = "{done:,} of {total:,} {unit}".format(**progress) if progress.get("total") else ""
        return "begun", told or "stopped at its start", progress.get("seconds_left")


def told_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two `made_of`, in words: parameters and versions by name."""
    if not before:
        return "made by an older anytime_lab"
    told = ["the notebook's code"] if before.get("code") != now["code"] else []
    for part in ("parameters", "versions", "inputs"):
        old, new = before.get(part, {}), now[part]
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                change = f"{_told(old.get(name))} → {_told(new.get(name))}"
                told.append(f"{name} {'changed' if part == 'inputs' else change}")
    if before.get("accelerate", {}) != now["accelerate"]:
        told.append("the settings of accelerate")
    if before.get("processes", 1) != now["processes"]:
        told.append(f"processes {before.get('processes')} → {now['processes']}")
    return "; ".join(told)


def _told(value: Any) -> str:
    return "not given" if value is None else short(json.dumps(value, ensure_ascii=False))


def read_or_nothing(path: Path) -> dict[str, Any]:
    """A file of a run, or nothing where it is absent or damaged."""
    try:
        found = files.read_json(path)
    except files.RunFolderError:
        return {}
    return found if isinstance(found, dict) else {}


# --- from outside --------------------------------------------------------------------------------


def run_to_end(
    run: Job,
    environment: Mapping[str, str] | None = None,
    look: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run a notebook in a process of its own, wait for it, and give its result.

    Whatever ends this function early ends the run, with its kernel and all that this has started.

    Args:
        run: Checked beforehand.
        environment: Added to this process's own, such as `OMP_NUM_THREADS`.
        look: Called every second while it runs; what it raises ends the run.

    Raises:
        RunFailed: it ended without a result; the reason is kept in `failure.json`.
        RunFolderError: another process is running there, or nothing can be written there.
    """
    shown, secrets = hide_secrets(run.parameters)
    # The kernel named python3 shall be this environment's, whatever the user has installed.
    surroundings = {**os.environ, "JUPYTER_PREFER_ENV_PATH": "1", "TOKENIZERS_PARALLELISM": "false"}
    surroundings.pop("JUPYTER_PATH", None)
    surroundings |= {MARK: str(run.folder), SECRETS: json.dumps(secrets), **(environment or {})}
    limit = math.inf if run.needs.timeout is None else run.needs.timeout
    with files.only_writer(run.folder, LOCK, PATIENCE):
        about = {"notebook": str(run.notebook), "parameters": shown, "hash": run.hash}
        about |= {"made_of": run.made_of, **run.needs.model_dump(), "started": time.time()}
        _take_folder(run.folder, about)
        with open(run.folder / LOG, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "anytime_lab.run.process", str(run.folder)],
                stdin=subprocess.PIPE,  # its end tells the child that this process is gone
                stdout=log,
                stderr=log,
                env=surroundings,
                start_new_session=True,
            )
        try:
            while process.poll() is None and time.time() < about["started"] + limit:
                look()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK)
            late = process.returncode is None
        finally:
            process.stdin.close()  # see `_watch_starter`
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            process.kill()
            code = process.wait()
        if (result := run.result) is not None:  # written last, it counts however the process ended
            return result
        told = f"TimeoutError: the run took longer than its limit of {limit:g} s" if late else ""
        failure = {"hash": run.hash, "reason": redacted(told or _reason(run.folder, code))}
        files.write_json(run.folder / FAILURE, {**failure, "finished": time.time()})
        raise RunFailed(run.told_failure)


def _take_folder(folder: Path, about: Mapping[str, Any]) -> None:
    """Put a different run's files out of the way, and say what is to be done."""
    before = read_or_nothing(folder / RUN)
    if before:  # its kernel may outlive its launcher by a second
        known = psutil.process_iter(["environ"])
        marked = [one for one in known if (one.info["environ"] or {}).get(MARK) == str(folder)]
        _kill([one for one in marked if one.pid != os.getpid()])
    for stale in (files.RESULT, FAILURE):
        (folder / stale).unlink(missing_ok=True)
    if before and before.get("hash") != about["hash"]:
        _set_aside(folder, str(before.get("hash"))[:12])
    files.remove_leftovers(folder)  # of a writer that was killed
    files.write_json(folder / RUN, about)
    (folder / LOG).unlink(missing_ok=True)


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


_ERROR = re.compile(r"[\w.]*(Error|Exception|Died|Interrupt|Failed)\b")


def _reason(folder: Path, code: int) -> str:
    if code == -signal.SIGKILL:
        return "killed by SIGKILL, as the system does when memory runs out"
    if code < 0:
        return f"stopped by signal {signal.Signals(-code).name}"
    log = folder / LOG
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    told = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in lines]
    errors = [line for line in told if _ERROR.match(line)]
    return (errors or [line for line in told if line] or [f"exit status {code}"])[-1][:500]


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


# --- from inside: python -m anytime_lab.run.process FOLDER ---------------------------------------


def main(folder: Path, rank: bool) -> None:
    """The process of a run, which writes its result, or of one of its ranks."""
    signal.signal(signal.SIGTERM, lambda *_: _end(folder, 143))
    about, started = files.read_json(folder / RUN), time.time()
    if rank:
        execute_notebook(folder, about)
        return
    threading.Thread(target=_watch_starter, args=[folder], daemon=True).start()
    several = about["processes"] > 1 or about["accelerate"]
    try:
        (_run_processes if several else execute_notebook)(folder, about)
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    finally:
        _remove_secrets(folder)
    ended = time.time()
    result = {key: about[key] for key in ("hash", "parameters", "made_of")}
    result |= {"notebook": Path(about["notebook"]).name, "seconds": ended - started}
    files.write_json(folder / files.RESULT, {**result, "finished": ended})


def execute_notebook(folder: Path, about: Mapping[str, Any]) -> None:
    """Papermill, with its traps closed."""
    # jsonschema would build a grammar of IRIs, 2 s long; the schema of a notebook has none.
    sys.modules.setdefault("rfc3987_syntax", None)
    import papermill

    from anytime_lab.look.pictures import add_pictures

    rank = int(os.environ.get("RANK", "0"))
    executed = EXECUTED if rank == 0 else f"notebook.rank-{rank}.ipynb"
    execute = partial(
        papermill.execute_notebook,
        about["notebook"],
        str(folder / executed),
        parameters=about["parameters"],
        kernel_name="python3",
        cwd=str(Path(about["notebook"]).parent),
        progress_bar=False,
        log_output=True,
        start_timeout=KERNEL_START,
        store_widget_state=False,  # one figure widget adds 5 MB
    )
    try:
        execute()
    except RuntimeError as error:
        if "died before replying" not in str(error):
            raise
        print("The kernel died before the first cell; another one is started.", flush=True)
        execute()  # such as where another kernel was faster to take its ports
    if rank == 0:
        try:
            add_pictures(folder / executed)
        except RuntimeError as error:  # the run is as good without
            print(f"The notebook's figures have no pictures: {error}", flush=True)


def _remove_secrets(folder: Path) -> None:
    """Take out of the notebook and the log what the run itself told of its secrets."""
    for path in (folder / EXECUTED, folder / LOG):
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        cleaned = text
        for placeholder, secret in json.loads(os.environ.get(SECRETS, "{}")).items():
            cleaned = cleaned.replace(secret, placeholder)
        if cleaned != text:
            path.write_text(cleaned, encoding="utf-8")  # in place: the log is still open


def _run_processes(folder: Path, about: Mapping[str, Any]) -> None:
    """The same notebook in a kernel for each process; a launcher gives them their ranks."""
    if about["accelerate"]:
        settings = folder / ACCELERATE
        told = {**about["accelerate"], "num_processes": about["processes"]}
        files.write_json(settings, told)  # which is YAML, too
        command = [sys.executable, "-m", "accelerate.commands.launch"]
        command += ["--config_file", str(settings), "--main_process_port", "0"]  # any that is free
    else:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(about["processes"])]
    command += ["-m", "anytime_lab.run.process", str(folder), "--rank"]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL)
    if ended.returncode:
        sys.exit(ended.returncode if ended.returncode > 0 else 128 - ended.returncode)


def _watch_starter(folder: Path) -> None:
    """End when standard input does: the process that holds its other end has gone."""
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    _end(folder, 1)


def _end(folder: Path, code: int) -> None:
    """Kill all that this process has started, then end it."""
    _kill(psutil.Process().children(recursive=True))
    _remove_secrets(folder)
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--rank" in sys.argv)
