"""A run's folder: where it lies, who writes it, and which settings it was begun with."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from anytime_lab.store.files import RunFolderError, run_folder

WRITING = ".writing"  # locked by the process that writes the folder; a kill lets it go


@contextlib.contextmanager
def only_writer(folder: str | Path) -> Iterator[Path]:
    """Hold a folder, which is made if need be, while a run writes it.

    Raises:
        RunFolderError: another run writes there now.
    """
    folder = run_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / WRITING)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunFolderError(
            f"another run writes into {folder} now. Wait until it has ended, stop it, or give this "
            "one a folder of its own."
        ) from error
    try:
        yield folder
    finally:
        lock.release()


def check_same_settings(
    folder: Path, kind: str, before: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Check that a folder's run goes on with the settings that it was begun with.

    Args:
        folder: For the message.
        kind: Of the run, such as "evaluation".
        before: As they stand in the folder.
        now: As asked for.

    Raises:
        RunFolderError: some differ; the message names them.
    """
    changed = [
        f"{name}: {before.get(name)!r} there, {now.get(name)!r} now"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise RunFolderError(
            f"{folder} holds {kind} with other settings ({'; '.join(changed)}). Use a new folder, "
            "or delete this one to start over."
        )
