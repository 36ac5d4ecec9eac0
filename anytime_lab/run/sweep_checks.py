"""Settings that would fail hours later, refused before a sweep starts: presets, tasks, batches."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anytime_lab.run.jobs import Job
from anytime_lab.run.parameters import declared_parameters
from anytime_lab.run.sweep_file import Sweep
from anytime_lab.run.sweep_jobs import Place


def check_settings(sweep: Sweep, jobs: Mapping[Place, Job]) -> None:
    """Build every run's training config as its notebook will, and look up its task by name.

    Nothing is loaded: models and datasets of the hub need not be reachable.

    Raises:
        ValueError: a preset, a task or a setting is unknown, or settings do not go together.
    """
    seen: set[str] = set()
    for place, job in jobs.items():
        if callable(job.parameters):
            continue  # made of results that are not there yet
        said = {k: v for k, v in job.parameters.items() if k not in ("output_dir", "seed")}
        once = json.dumps([place.step, said], sort_keys=True)
        if once in seen:  # seeds differ in nothing that is checked
            continue
        seen.add(once)
        values = {**declared_parameters(job.notebook), **job.parameters}
        try:
            check_values(job.notebook, values, job.processes)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{sweep.name}.yaml: {job.name}: {error}") from error


def check_values(notebook: Path, values: Mapping[str, Any], processes: int = 1) -> None:
    """As `check_settings`, for one notebook with all of its parameters."""
    if "task" in values:
        _check_task(values["task"])
    if "preset" in values and "presets.by_name" in _config_cell(notebook):
        config_of(notebook, _as_one_process(values, processes))


def _as_one_process(values: Mapping[str, Any], processes: int) -> Mapping[str, Any]:
    """The same batches in one process: rows of a generation and of an update count over all."""
    settings = values.get("settings", {})
    key = "per_device_train_batch_size"
    a_process = settings.get(key, values.get("rows_per_batch"))
    if processes == 1 or a_process is None:
        return values
    return {**values, "settings": {**settings, key: a_process * processes}}


def _check_task(name: str) -> None:
    from anytime_lab.tasks.benchmarks import BENCHMARKS
    from anytime_lab.tasks.catalogue import COUNTDOWN

    if name != COUNTDOWN and name not in BENCHMARKS and not Path(name).expanduser().is_file():
        raise ValueError(
            f"there is no task {name!r}; choose {COUNTDOWN}, {', '.join(BENCHMARKS)}, or a file."
        )


def config_of(notebook: Path, values: Mapping[str, Any]) -> Any:
    """The config that the notebook makes in the cell after its parameters.

    The notebook itself is the only place that says how parameters become settings, so its cell is
    run as it stands.

    Args:
        values: Of all parameters.
    """
    room = dict(values)
    exec(compile(_config_cell(notebook), notebook.name, "exec"), room)
    return room["config"]


def _config_cell(notebook: Path) -> str:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    tagged = [n for n, cell in enumerate(code) if "parameters" in cell["metadata"].get("tags", [])]
    after = code[tagged[0] + 1 :] if tagged else []
    return "".join(after[0]["source"]) if after else ""
