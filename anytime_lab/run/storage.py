"""A sweep's runs behind an fsspec URL, for machines that share no file system.

The layout is that of the folder, `URL/GRPO/seed-0/train/…`. A finished run's files lie there one by
one, `result.json` last; whether a run is done is read from there. What an unfinished run left lies
in one archive, so that the next try finds the state of one moment or nothing.
"""

import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec

from anytime_lab.page import redacted
from anytime_lab.run.process import (
    FAILURE,
    LOCK,
    LOG,
    REPLACED,
    RUN,
    NotebookRun,
    read_or_nothing,
)
from anytime_lab.store.files import RESULT, write_json

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
            raise ValueError(redacted(f"{url} cannot be opened: {error}")) from None
        self.root = root.rstrip("/")

    def _at(self, name: str, file: str = "") -> str:
        return "/".join(filter(None, [self.root, name, file]))

    def _files(self, name: str) -> list[str]:
        """Files of a run, relative to it, without what another run had left there."""
        base = self._at(name)
        self.fs.invalidate_cache()
        found = [path.removeprefix(f"{base}/") for path in self.fs.find(base)]
        return sorted(file for file in found if not file.startswith(f"{REPLACED}/"))

    def _get(self, name: str, files: Iterable[str], folder: Path) -> None:
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            self.fs.get_file(self._at(name, file), str(folder / file))

    def _read(self, name: str, file: str) -> dict[str, Any]:
        return json.loads(self.fs.cat_file(self._at(name, file)))

    def _put(self, path: Path, name: str, file: str, whole: bool = False) -> None:
        """Upload; where it has to be whole, under another name first: not all write in one step."""
        target = self._at(name, f"{file}.part" if whole else file)
        self.fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        self.fs.put_file(str(path), target)
        if whole:
            self.fs.mv(target, self._at(name, file))

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
            result = self._read(name, RESULT)
            if read_or_nothing(folder / RESULT) == result:
                return
            _clear(folder)
            heavy = HEAVY if told else ()
            wanted = [file for file in files if file != RESULT and not file.startswith(heavy)]
            self._get(name, wanted, folder)
            write_json(folder / RESULT, result)
            return
        (folder / RESULT).unlink(missing_ok=True)
        if told:
            (folder / FAILURE).unlink(missing_ok=True)
            self._get(name, set(files) & set(TOLD), folder)
        elif PARTIAL in files:
            _clear(folder)
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory() as room:
                self._get(name, [PARTIAL], Path(room))
                with tarfile.open(Path(room) / PARTIAL) as archive:
                    archive.extractall(folder, **SAFELY)

    def set_aside(self, run: NotebookRun, name: str) -> None:
        """Move what other parameters or versions had made to `.replaced/`."""
        files = self._files(name)
        before = str(self._read(name, RUN).get("hash")) if RUN in files else run.hash
        if before == run.hash:
            return
        # What tells that they are another run's goes last, so that a kill repeats it.
        for file in sorted(files, key=lambda file: (file == RUN, file != RESULT)):
            target = self._at(name, f"{REPLACED}/{before[:12]}/{file}")
            self.fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            self.fs.mv(self._at(name, file), target)

    def keep(self, run: NotebookRun, name: str) -> None:
        """Upload what a run has left: its files and then its result, or its state as it is."""
        files = {
            path.relative_to(run.folder).as_posix(): path
            for path in sorted(run.folder.rglob("*"))
            if path.is_file() and path.relative_to(run.folder).parts[0] not in (REPLACED, LOCK)
        }
        if run.result is None:
            if RUN in files:
                self._put(files[RUN], name, RUN)
            with tempfile.TemporaryDirectory() as room:
                with tarfile.open(Path(room) / PARTIAL, "w") as archive:
                    for file, path in files.items():
                        archive.add(path, file)
                self._put(Path(room) / PARTIAL, name, PARTIAL, whole=True)
            for file in set(files) & {LOG, FAILURE}:
                self._put(files[file], name, file)
            return
        for file in sorted(files, key=lambda file: file == RESULT):
            self._put(files[file], name, file, whole=file == RESULT)
        for file in self._files(name):
            if file not in files:  # of earlier tries
                self.fs.rm(self._at(name, file))


def mirror(storage: Storage, out: Path, names: Iterable[str]) -> None:
    """Make a local folder show what the storage holds, for the plan and the comparison.

    Raises:
        ValueError: the folder holds results of its own, or shows another URL.
    """
    check_mirror(out, storage.url)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / MIRROR, {"url": redacted(storage.url)})
    for name in names:
        storage.fetch(name, out / name, told=True)


def check_mirror(out: Path, url: str | None) -> None:
    """Refuse a folder that does not belong to a URL, or belongs to one if there is none.

    Raises:
        ValueError: as said.
    """
    shows, url = read_or_nothing(out / MIRROR).get("url"), redacted(url)
    if shows not in (url, None):
        raise ValueError(
            f"{out} shows results behind {shows}; give --storage {shows}, or choose another --out."
        )
    if url is not None and shows is None and out.is_dir() and any(out.iterdir()):
        raise ValueError(
            f"{out} holds results of its own; choose another --out to show those behind {url}."
        )


def _clear(folder: Path) -> None:
    """Remove a run's files; who holds its lock keeps it."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name in (LOCK, REPLACED):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
