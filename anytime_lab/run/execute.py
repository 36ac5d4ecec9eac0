"""The process of one run: `python -m anytime_lab.run.execute FOLDER` does what its run.json says.

Papermill executes the notebook, then `result.json` is written, last. The process ends, with its
kernel and whatever that has started, on SIGTERM, at its time limit, and when the process that
started it is gone: nothing goes on behind a killed session.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# ruff: noqa: E402
# jsonschema would build a grammar of IRIs, 2 s long; the schema of a notebook has none.
sys.modules.setdefault("rfc3987_syntax", None)

import papermill
import psutil
import yaml

from anytime_lab.look.pictures import add_pictures
from anytime_lab.run.notebook import EXECUTED, RUN
from anytime_lab.store.records import RESULT, read_json, write_json

ACCELERATE = "accelerate.yaml"  # in the folder of a run that accelerate launches
KERNEL_START = 300  # seconds; a busy machine takes longer than papermill's 60


def run_here(folder: Path) -> None:
    """Execute the run of a folder, in one process or several, and write its result."""
    about = read_json(folder / RUN)
    started = time.time()
    if about["timeout"] is not None:
        limit = threading.Timer(about["timeout"], _expire, [about["timeout"]])
        limit.daemon = True
        limit.start()
    if about["processes"] > 1 or about["accelerate"]:
        _run_processes(folder, about)
    else:
        execute_notebook(folder, about)
    write_json(
        folder / RESULT,
        {
            "hash": about["hash"],
            "notebook": Path(about["notebook"]).name,
            "parameters": about["parameters"],
            "made_of": about["made_of"],
            "seconds": time.time() - started,
            "finished": time.time(),
        },
    )


def execute_notebook(folder: Path, about: Mapping[str, Any]) -> None:
    """Papermill, with its traps closed."""
    rank = int(os.environ.get("RANK", "0"))
    executed = EXECUTED if rank == 0 else f"notebook.rank-{rank}.ipynb"
    papermill.execute_notebook(
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
    if rank == 0:
        try:
            add_pictures(folder / executed)
        except RuntimeError as error:  # the run is as good without
            print(f"The notebook's figures have no pictures: {error}", flush=True)


def _run_processes(folder: Path, about: Mapping[str, Any]) -> None:
    """The same notebook in a kernel for each process; a launcher gives them their ranks."""
    if about["accelerate"]:
        settings = folder / ACCELERATE
        settings.write_text(yaml.safe_dump(about["accelerate"]), encoding="utf-8")
        command = [sys.executable, "-m", "accelerate.commands.launch"]
        command += ["--config_file", str(settings), "--main_process_port", "0"]  # any that is free
    else:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(about["processes"])]
    command += ["-m", "anytime_lab.run.execute", str(folder), "--rank"]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL)
    if ended.returncode:
        sys.exit(ended.returncode if ended.returncode > 0 else 128 - ended.returncode)


def _expire(limit: float) -> None:
    print(f"TimeoutError: the run took longer than its limit of {limit:g} s", flush=True)
    _end_family(124)


def _end_family(code: int) -> None:
    """Kill all that this process has started, then end it."""
    family = psutil.Process().children(recursive=True)
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=5)
    sys.stdout.flush()
    os._exit(code)


def _watch_starter() -> None:
    """End when standard input does: the process that holds its other end has gone."""
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    _end_family(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: a folder, and `--rank` for one process of several."""
    folder, *rest = sys.argv[1:] if arguments is None else arguments
    # The kernel has to die with this process: SIGTERM becomes an exception that papermill sees.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if rest == ["--rank"]:
        execute_notebook(Path(folder), read_json(Path(folder) / RUN))
        return
    threading.Thread(target=_watch_starter, daemon=True).start()
    run_here(Path(folder))


if __name__ == "__main__":
    main()
