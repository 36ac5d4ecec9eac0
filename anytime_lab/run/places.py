"""Where notebook runs go: `PLACES`, name → (words, how it is opened); here, this machine.

Another scheduler is a class like `LocalPlace` and a row of `PLACES`.
"""

import math
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from anytime_lab.page import redacted
from anytime_lab.run.process import Job, Needs, run_to_end

Share = Mapping[str, float]  # of what a place has, by name
Place = Any  # has what `LocalPlace` has


class LocalPlace:
    """So many runs at a time on this machine, each in a process and kernel of its own.

    Args:
        workers: Most runs at a time.
        devices: CUDA devices to share out, see `cuda_devices`; with none, `CUDA_VISIBLE_DEVICES`
            is left as it is.
    """

    def __init__(self, workers: int, devices: Sequence[str] = ()):
        if workers < 1:
            raise ValueError(f"{workers} runs at a time; expected at least 1.")
        self.width = workers  # about how many runs go at a time
        self.devices = devices

    def check(self, needs: Needs) -> None:
        """Refuse, with a ValueError, what can never run here."""
        if needs.gpus is not None and needs.gpus > len(self.devices):
            raise ValueError(
                f"a run asks for {needs.gpus:g} GPUs and this machine has {len(self.devices)}. Run "
                "it where there are more, or change `gpus` of the step."
            )

    def share(self, needs: Needs, taken: Sequence[Share]) -> Share | None:
        """What a run would get beside those that have theirs; None if it has to wait.

        Here, device to the share of it.
        """
        if len(taken) >= self.width:
            return None
        wanted, even = needs.gpus, len(self.devices) / self.width
        if wanted is None and even:
            wanted = int(even) if even >= 1 else 1 / math.ceil(1 / even)
        if not wanted or not self.devices:
            return {}
        used = {name: sum(one.get(name, 0.0) for one in taken) for name in self.devices}
        count, part = (math.ceil(wanted), 1.0) if wanted >= 1 else (1, wanted)
        free = sorted((d for d in self.devices if used[d] + part < 1 + 1e-9), key=used.get)
        return dict.fromkeys(free[:count], part) if len(free) >= count else None

    def run(self, run: Job, share: Share, look: Callable[..., None]) -> dict[str, Any]:
        """Run it, wait for it in the caller's thread, and give its result.

        Args:
            look: Called every second or so, with False as long as the run has not begun; what it
                raises ends the run.

        Raises:
            RunFailed: it ended without a result; the message says why.
        """
        environment = {"OMP_NUM_THREADS": str(threads_of(self.width))}
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(share)
        return run_to_end(run, environment, look)

    def close(self) -> None:
        """Let go of what the place holds; no run goes on."""


def threads_of(workers: int) -> int:
    """Threads of one of several runs side by side: its share of the cores, or less if told so."""
    share = max(1, cores() // workers)
    told = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(told)) if told.isdecimal() and int(told) else share


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cuda_devices() -> list[str]:
    """The CUDA devices of this machine by the names that `CUDA_VISIBLE_DEVICES` takes.

    Where the variable is set, it says which; the driver is asked otherwise. Imports no torch.
    """
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [name.strip() for name in told.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    asked = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, timeout=60).stdout
    return [line for line in said.split() if line.isdecimal()]


def _local(out: Path, workers: int | None, storage: str | None) -> Place:
    if storage is not None:
        raise ValueError(
            f"runs of this machine go to a folder; leave out the storage {redacted(storage)}, or "
            "choose the executor ray."
        )
    # One run for each GPU; where there is none, one for two cores, and on two cores two.
    devices = cuda_devices()
    return LocalPlace(workers or len(devices) or max(min(2, cores()), cores() // 2), devices)


def _ray(out: Path, workers: int | None, storage: str | None) -> Place:
    try:
        from anytime_lab.run.ray_place import RayPlace
    except ModuleNotFoundError as error:
        raise ValueError(
            f"a Ray cluster needs Ray ({error}): pip install 'anytime-lab[ray]'."
        ) from error
    return RayPlace(out, workers, storage)


# How a place is opened: folder of the sweep, most runs at a time (None: what the place takes), and
# the URL of the results where its machines share no file system.
PLACES: Mapping[str, tuple[str, Callable[[Path, int | None, str | None], Place]]] = {
    "local": ("this machine", _local),
    "ray": ("a Ray cluster", _ray),
}


def open_place(
    name: str, out: Path, workers: int | None = None, storage: str | None = None
) -> Place:
    """The place of this name; close it at the end.

    Raises:
        ValueError: there is none, its package is not installed, or it takes no storage.
    """
    if name not in PLACES:
        raise ValueError(f"there is no executor {name!r}; choose {' or '.join(PLACES)}.")
    return PLACES[name][1](out, workers, storage)
