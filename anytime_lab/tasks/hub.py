"""Rows of a data set on the Hugging Face hub, or an error that says what to do without it."""

import errno
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RevisionNotFoundError,
)

HUB = "https://huggingface.co/datasets"


def load_hub_rows(
    name: str,
    path: str,
    config: str | None,
    split: str,
    revision: str | None,
    columns: Mapping[str, str | None],
) -> tuple[list[tuple[int, Mapping[str, Any]]], str]:
    """(numbered rows, address of the commit that they are of).

    Args:
        name: Of the benchmark, for errors.
        path: Repository.
        config: Configuration, or None.
        split: Of the repository.
        revision: Commit, branch or tag; None takes the newest.
        columns: Roles to the repository's columns; only these are read.

    Raises:
        ValueError: There is no such data set, revision, configuration, split or column.
        ConnectionError: The hub cannot be reached, does not answer, or must not be asked.
        PermissionError: The hub wants a login or an agreement first.
    """
    try:
        rows = datasets.load_dataset(path, config, split=split, revision=revision)
    except Exception as error:
        explained = _explained(error, name, path, revision)
        if explained is error:
            raise
        raise explained from error
    used = [column for column in columns.values() if column is not None]
    if missing := sorted(set(used) - set(rows.column_names)):
        raise ValueError(
            f"{path} has the columns {rows.column_names}, but no {missing}: it has changed. Name "
            "its columns (columns=...), an older commit (revision=...), or a file (path=...)."
        )
    commit = _commit(rows)
    if commit and re.fullmatch("[0-9a-f]{40}", revision or "") and commit != revision:
        raise ValueError(  # `datasets` takes what it has where it cannot ask
            f"{name}: the hub cannot be asked, and the cache holds {commit} and not {revision!r}. "
            "Leave revision out to take that, or pass a file (path=...)."
        )
    commit = commit or revision
    homepage = f"{HUB}/{path}" + (f"/tree/{commit}" if commit else "")
    return list(enumerate(rows.select_columns(used), start=1)), homepage


def _commit(rows: Dataset) -> str | None:
    """The repository's commit, which names the folder that the hub's rows are cached in."""
    parts = {part for file in rows.cache_files for part in Path(file["filename"]).parts}
    return next((part for part in sorted(parts) if re.fullmatch("[0-9a-f]{40}", part)), None)


def _explained(error: Exception, name: str, path: str, revision: str | None) -> Exception:
    """An error of `datasets` as one that says what was asked and what to do."""
    what = f"{name} ({HUB}/{path})"
    pass_file = (
        f'bring the file here by other means and pass it: load_benchmark("{name}", '
        f'path="{name}.jsonl")'
    )
    said = str(error).split("\n")[0][:300].rstrip(".")
    causes = list(_causes(error))
    statuses = [c.response.status_code for c in causes if isinstance(c, HfHubHTTPError)]
    unreachable = any(_is_of_the_network(cause) for cause in causes)
    if datasets.config.HF_HUB_OFFLINE and (unreachable or "cache" in said):
        return ConnectionError(
            f"{what} is not in the cache ({datasets.config.HF_DATASETS_CACHE}), and HF_HUB_OFFLINE "
            f"forbids to ask the hub. Unset HF_HUB_OFFLINE and load it once; or {pass_file}."
        )
    if any(isinstance(c, GatedRepoError) for c in causes) or "gated" in said:
        return PermissionError(
            f"{what} is gated: {said}. Agree to its terms on that page, log in (hf auth login, or "
            f"HF_TOKEN); or {pass_file}."
        )
    if any(isinstance(c, RevisionNotFoundError) for c in causes) or said.startswith("Revision"):
        return ValueError(
            f"{what} has no revision {revision!r}; its commits are listed at "
            f"{HUB}/{path}/commits/main. Name one of them, or leave revision out."
        )
    if isinstance(error, DatasetNotFoundError):
        return ValueError(
            f"{what}: {said}. It was moved or deleted, or is private and wants a login (hf auth "
            f"login, or HF_TOKEN); {pass_file}."
        )
    if {401, 403} & set(statuses):
        return PermissionError(
            f"{what}: the hub refuses ({said}). Check the token (hf auth whoami, HF_TOKEN); or "
            f"{pass_file}."
        )
    if isinstance(error, (ValueError, DataFilesNotFoundError)):  # configuration, split, no data
        return ValueError(
            f"{what} is not as it was: {said}. Name an older commit (revision=...), or {pass_file}."
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
        error.add_note(f"{what} is kept in {datasets.config.HF_DATASETS_CACHE} (HF_HOME moves it).")
        return error
    if unreachable or statuses:
        return ConnectionError(
            f"{what} could not be loaded: {type(error).__name__}: {said}. Check the connection "
            f"(proxy, HF_ENDPOINT) or try again later; or {pass_file}."
        )
    error.add_note(f"This came of loading {what}. Without the hub: {pass_file}.")
    return error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came of."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_of_the_network(error: BaseException) -> bool:
    kinds = (ConnectionError, TimeoutError, LocalEntryNotFoundError)
    # httpx has a tree of errors of its own.
    transport = {base.__name__ for base in type(error).__mro__} & {"TransportError", "gaierror"}
    routes = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN)
    no_route = isinstance(error, OSError) and error.errno in routes
    return isinstance(error, kinds) or bool(transport) or no_route
