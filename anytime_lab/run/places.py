"""A sweep's runs behind an fsspec URL, for machines that share no file system.

The layout is that of the folder, `URL/GRPO/seed-0/train/…`. A finished run's files lie there one by
one, `result.json` last; whether a run is done is read from there. What an unfinished run left lies
in one archive, so that the next try finds the state of one moment or nothing.
"""

import math
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import fsspec

from anytime_lab.run.notebook import (
    FAILURE,
    LOCK,
    LOG,
    REPLACED,
    RUN,
    NotebookRun,
    start_run,
    stop_run,
)
from anytime_lab.store.records import RESULT, read_json, write_json


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


# Python before 3.11.4 has no filters; archives are our own.
SAFELY = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}

PARTIAL = "partial.tar"
MIRROR = ".mirror.json"  # in a folder that only shows what is behind a URL
TOLD = (RUN, LOG, FAILURE)  # of an unfinished run, for whoever asks why
HEAVY = ("model/", "checkpoint-")  # what a comparison does not read


class Storage:
    """The runs of one sweep.

    Args:
        url: Such as `s3://bucket/runs/paper_main` or `gs://…`, `abfs://…`, `file:///…`; the
            protocol's package (`s3fs`, `gcsfs`, `adlfs`) has to be installed.

    Raises:
        ValueError: the protocol is unknown, or its package is not installed.
    """

    def __init__(self, url: str):
        self.url = url
        try:
            self.fs, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ValueError(f"{url} cannot be opened: {error}") from error
        self.root = root.rstrip("/")

    def _at(self, name: str, file: str = "") -> str:
        return "/".join(filter(None, [self.root, name, file]))

    def _files(self, name: str) -> list[str]:
        """Files of a run, relative to it, without what another run had left there."""
        base = self._at(name)
        self.fs.invalidate_cache()
        found = [path.removeprefix(f"{base}/") for path in self.fs.find(base)]
        return sorted(file for file in found if not file.startswith(f"{REPLACED}/"))

    def _get(self, name: str, file: str, folder: Path) -> None:
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        self.fs.get_file(self._at(name, file), str(target))

    def _put(self, path: Path, name: str, file: str) -> None:
        target = self._at(name, file)
        self.fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        self.fs.put_file(str(path), target)

    def _put_whole(self, path: Path, name: str, file: str) -> None:
        """Under another name first: not every file system writes a file in one step."""
        self._put(path, name, f"{file}.part")
        self.fs.mv(self._at(name, f"{file}.part"), self._at(name, file))

    def fetch(self, name: str, folder: Path, told: bool = False) -> None:
        """Make a folder hold what the storage holds of a run.

        Args:
            name: Of the run.
            folder: Where its files go.
            told: Only what a plan and a comparison read: no model, no checkpoint, and of a run
                that is not finished its reason and log.
        """
        files = self._files(name)
        if RESULT in files:
            with tempfile.TemporaryDirectory() as room:
                self._get(name, RESULT, Path(room))
                result = read_json(Path(room) / RESULT)
            if folder.is_dir() and _read(folder / RESULT) == result:
                return
            _clear(folder)
            wanted = [file for file in files if not (told and file.startswith(HEAVY))]
            for file in wanted:
                if file != RESULT:
                    self._get(name, file, folder)
            write_json(folder / RESULT, result)
            return
        (folder / RESULT).unlink(missing_ok=True)
        if told:
            (folder / FAILURE).unlink(missing_ok=True)
            for file in set(files) & set(TOLD):
                self._get(name, file, folder)
        elif PARTIAL in files:
            _clear(folder)
            with tempfile.TemporaryDirectory() as room:
                self._get(name, PARTIAL, Path(room))
                folder.mkdir(parents=True, exist_ok=True)
                with tarfile.open(Path(room) / PARTIAL) as archive:
                    archive.extractall(folder, **SAFELY)

    def set_aside(self, run: NotebookRun, name: str) -> None:
        """Move what other parameters or versions had made to `.replaced/`."""
        files = self._files(name)
        if RUN not in files:
            return
        with tempfile.TemporaryDirectory() as room:
            self._get(name, RUN, Path(room))
            before = str(read_json(Path(room) / RUN).get("hash"))
        if before == run.hash:
            return
        # What tells that they are another run's goes last, so that a kill repeats it.
        for file in sorted(files, key=lambda file: (file == RUN, file != RESULT)):
            target = self._at(name, f"{REPLACED}/{before[:12]}/{file}")
            self.fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            self.fs.mv(self._at(name, file), target)

    def keep(self, run: NotebookRun, name: str) -> None:
        """Upload what a run has left: its files and then its result, or its state as it is."""
        files = sorted(
            path
            for path in run.folder.rglob("*")
            if path.is_file() and path.relative_to(run.folder).parts[0] not in (REPLACED, LOCK)
        )
        if run.result is None:
            for path in files:
                if path.name == RUN and path.parent == run.folder:
                    self._put(path, name, RUN)
            with tempfile.TemporaryDirectory() as room:
                with tarfile.open(Path(room) / PARTIAL, "w") as archive:
                    for path in files:
                        archive.add(path, path.relative_to(run.folder).as_posix())
                self._put_whole(Path(room) / PARTIAL, name, PARTIAL)
            for told in TOLD:
                if (run.folder / told).exists():
                    self._put(run.folder / told, name, told)
            return
        for path in files:
            if path != run.folder / RESULT:
                self._put(path, name, path.relative_to(run.folder).as_posix())
        self._put_whole(run.folder / RESULT, name, RESULT)
        kept = {path.relative_to(run.folder).as_posix() for path in files}
        for file in self._files(name):
            if file not in kept:  # of earlier tries
                self.fs.rm(self._at(name, file))


def mirror(storage: Storage, out: Path, names: Iterable[str]) -> None:
    """Make a local folder show what the storage holds, for the plan and the comparison.

    Raises:
        ValueError: the folder holds results of its own, or shows another URL.
    """
    check_mirror(out, storage.url)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / MIRROR, {"url": storage.url})
    for name in names:
        storage.fetch(name, out / name, told=True)


def check_mirror(out: Path, url: str | None) -> None:
    """Refuse a folder that does not belong to a URL, or belongs to one if there is none.

    Raises:
        ValueError: as said.
    """
    shows = _read(out / MIRROR).get("url")
    if url is None and shows is not None:
        raise ValueError(
            f"{out} shows results behind {shows}; give --storage {shows}, or choose another --out."
        )
    if url is not None and shows not in (url, None):
        raise ValueError(f"{out} shows results behind {shows}; choose another --out for {url}.")
    if url is not None and shows is None and out.is_dir() and any(out.iterdir()):
        raise ValueError(
            f"{out} holds results of its own; choose another --out to show those behind {url}."
        )


def _read(path: Path) -> Mapping[str, Any]:
    return read_json(path) if path.exists() else {}


def _clear(folder: Path) -> None:
    """Remove a run's files; who holds its lock keeps it."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name in (LOCK, REPLACED):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
