"""A sweep's runs behind an fsspec URL, for machines that share no file system.

The layout is that of the folder, `URL/GRPO/seed-0/train/…`. A finished run's files lie there one by
one, `result.json` last; whether a run is done is read from there. What an unfinished run left lies
in one archive, so that the next try finds the state of one moment or nothing.
"""

import json
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path

import fsspec

from anytime_lab.page import redacted
from anytime_lab.run.process import FAILURE, LOCK, LOG, REPLACED, RUN, Job, read_or_nothing
from anytime_lab.store.files import RESULT, write_json

PARTIAL = "partial.tar"
MIRROR = ".mirror.json"  # in a folder that only shows what is behind a URL
TOLD = {RUN, LOG, FAILURE}  # of an unfinished run, for whoever asks why
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

    def _at(self, name: str, file: str) -> str:
        return f"{self.root}/{name}/{file}"

    def _files(self, name: str) -> list[str]:
        """Files of a run, relative to it, without what another run had left there."""
        self.fs.invalidate_cache()
        found = [path.removeprefix(self._at(name, "")) for path in self.fs.find(self._at(name, ""))]
        return sorted(file for file in found if not file.startswith(f"{REPLACED}/"))

    def _get(self, name: str, files: Iterable[str], folder: Path) -> None:
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            self.fs.get_file(self._at(name, file), str(folder / file))

    def _put(self, name: str, files: Iterable[str], folder: Path) -> None:
        for file in files:
            self.fs.makedirs(self._at(name, file).rpartition("/")[0], exist_ok=True)
            self.fs.put_file(str(folder / file), self._at(name, file))

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
            result = json.loads(self.fs.cat_file(self._at(name, RESULT)))
            if read_or_nothing(folder / RESULT) == result:
                return
            shutil.rmtree(folder, ignore_errors=True)
            left = (RESULT, *HEAVY) if told else RESULT
            self._get(name, [file for file in files if not file.startswith(left)], folder)
            write_json(folder / RESULT, result)
            return
        (folder / RESULT).unlink(missing_ok=True)
        if told:
            (folder / FAILURE).unlink(missing_ok=True)
            self._get(name, TOLD.intersection(files), folder)
        elif PARTIAL in files:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            with (
                self.fs.open(self._at(name, PARTIAL)) as file,
                tarfile.open(fileobj=file, mode="r|") as archive,
            ):
                # Python before 3.11.4 has no filters; archives are our own.
                archive.extraction_filter = getattr(tarfile, "data_filter", None)
                archive.extractall(folder)

    def set_aside(self, run: Job) -> None:
        """Move what other parameters or versions had made to `.replaced/`."""
        files = self._files(run.name)
        if RUN not in files:
            return
        before = str(json.loads(self.fs.cat_file(self._at(run.name, RUN))).get("hash"))
        # What tells that they are another run's goes last, so that a kill repeats it.
        for file in sorted(files, key=lambda file: (file == RUN, file != RESULT)):
            if before != run.hash:
                target = self._at(run.name, f"{REPLACED}/{before[:12]}/{file}")
                self.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
                self.fs.mv(self._at(run.name, file), target)

    def keep(self, run: Job) -> None:
        """Upload what a run has left: its files and then its result, or its state as it is."""
        name = run.name
        found = sorted(path for path in run.folder.rglob("*") if path.is_file())
        files = [path.relative_to(run.folder).as_posix() for path in found]
        files = [file for file in files if file.split("/")[0] not in (REPLACED, LOCK, RESULT)]
        if run.result is None:
            self._put(name, {RUN}.intersection(files), run.folder)
            # Moved into place when it is whole, where the file system does not write so anyway.
            with (
                self.fs.transaction,
                self.fs.open(self._at(name, PARTIAL), "wb") as file,
                tarfile.open(fileobj=file, mode="w|") as archive,
            ):
                for one in files:
                    archive.add(run.folder / one, one)
            self._put(name, {LOG, FAILURE}.intersection(files), run.folder)
            return
        self._put(name, files, run.folder)
        with self.fs.transaction:
            self.fs.pipe_file(self._at(name, RESULT), (run.folder / RESULT).read_bytes())
        for old in set(self._files(name)).difference(files, [RESULT]):  # of earlier tries
            self.fs.rm(self._at(name, old))


def mirror(storage: Storage | None, out: Path, names: Iterable[str]) -> None:
    """Make a local folder show what the storage holds, for the plan and the comparison.

    Args:
        storage: None where the results are in the folder itself, which is then only checked.

    Raises:
        ValueError: the folder holds results of its own and there is a storage, or shows another's.
    """
    shows = read_or_nothing(out / MIRROR).get("url")
    url = redacted(storage.url) if storage else None
    if shows not in (url, None):
        raise ValueError(
            f"{out} shows results behind {shows}; give --storage {shows}, or choose another --out."
        )
    if url is None:
        return
    if shows is None and out.is_dir() and any(out.iterdir()):
        raise ValueError(
            f"{out} holds results of its own; choose another --out to show those behind {url}."
        )
    write_json(out / MIRROR, {"url": url})
    for name in names:
        storage.fetch(name, out / name, told=True)
