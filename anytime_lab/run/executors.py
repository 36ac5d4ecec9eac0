"""Where runs go: processes of this machine, with its cores and devices shared out between them."""

import math
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from anytime_lab.run.launch import NotebookRun, start_run, stop_run


@dataclass(frozen=True)
class Needs:
    """What a run asks of a machine.

    Attributes:
        gpus: Devices, or the share of one; None takes an even share of what there is.
    """

    gpus: float | None = None


class Executor(Protocol):
    """Starts runs and tells how they ended. A handle is whatever `start` returns.

    Attributes:
        width: About how many runs go at a time.
    """

    width: int

    def check(self, needs: Needs, processes: int) -> None:
        """Refuse, with a ValueError, what can never run here."""

    def fits(self, needs: Needs) -> bool:
        """Whether a run can be started now."""

    def start(self, run: NotebookRun, needs: Needs) -> object:
        """Start a run that fits."""

    def begun(self, handle: object) -> bool:
        """Whether a run has begun; it may have to wait for a machine."""

    def poll(self, handle: object) -> int | None:
        """Exit status of a run, None while it goes on.

        Raises:
            RunFailed: it was lost and will not be tried again.
        """

    def stop(self, handles: Sequence[object]) -> None:
        """Stop runs; their files stay, for another call to go on from."""

    def close(self) -> None:
        """Let go of what the executor holds; no run goes on."""


@dataclass
class _Local:
    process: subprocess.Popen
    share: dict[str, float]


@dataclass
class LocalExecutor:
    """So many runs at a time on this machine, each in a process and kernel of its own.

    Attributes:
        workers: Most runs at a time.
        environment: For the runs; `OMP_NUM_THREADS` is the even share of the cores unless given
            here, or less where this process's own environment says less.
        devices: CUDA devices to share out, see `cuda_devices`; with none, `CUDA_VISIBLE_DEVICES`
            is left as it is.
    """

    workers: int
    environment: Mapping[str, str] | None = None
    devices: Sequence[str] = ()
    _running: list[_Local] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"{self.workers} runs at a time; expected at least 1.")

    @property
    def width(self) -> int:
        """See `Executor`."""
        return self.workers

    def check(self, needs: Needs, processes: int) -> None:
        """See `Executor`."""
        if needs.gpus is not None and needs.gpus > len(self.devices):
            raise ValueError(
                f"a run asks for {needs.gpus:g} GPUs and this machine has {len(self.devices)}. Run "
                "it where there are more, or change `gpus` of the step."
            )

    def fits(self, needs: Needs) -> bool:
        """See `Executor`."""
        return len(self._running) < self.workers and self._share(needs) is not None

    def _share(self, needs: Needs) -> dict[str, float] | None:
        """Device to the share of it that a run would get; None if it has to wait."""
        if not self.devices:
            return {}
        wanted = needs.gpus
        if wanted is None:
            even = len(self.devices) / self.workers
            wanted = int(even) if even >= 1 else 1 / math.ceil(1 / even)
        used = dict.fromkeys(self.devices, 0.0)
        for other in self._running:
            for device, share in other.share.items():
                used[device] += share
        count, share = (math.ceil(wanted), 1.0) if wanted >= 1 else (1, wanted)
        if wanted == 0:
            return {}
        free = sorted((d for d in self.devices if used[d] + share < 1 + 1e-9), key=used.get)
        return dict.fromkeys(free[:count], share) if len(free) >= count else None

    def start(self, run: NotebookRun, needs: Needs) -> _Local:
        """See `Executor`."""
        share = self._share(needs)
        threads = {"OMP_NUM_THREADS": str(threads_of(self.workers))}
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(share)} if self.devices else {}
        surroundings = {**threads, **(self.environment or {}), **visible}
        started = _Local(start_run(run, surroundings), share)
        self._running.append(started)
        return started

    def begun(self, handle: _Local) -> bool:
        """See `Executor`."""
        return True

    def poll(self, handle: _Local) -> int | None:
        """See `Executor`."""
        code = handle.process.poll()
        if code is not None and handle in self._running:
            self._running.remove(handle)
        return code

    def stop(self, handles: Sequence[_Local]) -> None:
        """See `Executor`."""
        for handle in handles:
            stop_run(handle.process)
        self._running = [one for one in self._running if one not in handles]

    def close(self) -> None:
        """See `Executor`; nothing is held."""


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
    asked = subprocess.run(
        ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = asked.stdout.split() if asked.returncode == 0 else []
    return [line for line in lines if line.isdecimal()]
