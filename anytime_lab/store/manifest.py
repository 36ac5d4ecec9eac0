"""What a manifest says of the code, the model and the data that made a run."""

import contextlib
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = ("anytime_lab", "torch", "transformers", "trl", "datasets", "vllm", "pyarrow")
WEIGHTS = ("*.safetensors", "*.bin", "config.json")


def versions_of(names: Iterable[str]) -> dict[str, str]:
    """Versions of those libraries that are installed."""
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def environment() -> dict[str, Any]:
    """Versions, command, code state and time of this process."""
    here, commit = Path(__file__).resolve().parents[2], None  # of the checkout, where it is one
    asked = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if (here / ".git").exists():
            told = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)
            commit = told.stdout.strip()
    return {
        "versions": {"python": sys.version.split()[0], **versions_of(LIBRARIES)},
        "commit": commit,
        "command": [sys.executable, *sys.argv],
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def sessions_of(manifest: Any) -> list[dict[str, Any]]:
    """The sessions that a manifest tells of; what is none of `environment` is left out."""
    told = manifest.get("sessions") if isinstance(manifest, Mapping) else None
    return [
        session
        for session in (told if isinstance(told, list) else ())
        if isinstance(session, dict) and isinstance(session.get("versions"), dict)
    ]


def hash_model_folder(path: str | Path) -> str:
    """SHA-256 over weights and config of a saved model.

    Raises:
        FileNotFoundError: the folder holds no weights.
    """
    files = sorted({file for pattern in WEIGHTS for file in Path(path).glob(pattern)})
    if not any(file.suffix in (".safetensors", ".bin") for file in files):
        raise FileNotFoundError(
            f"{path} holds no *.safetensors or *.bin; give the folder of a saved model."
        )
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0")
        with open(file, "rb") as content:
            hashlib.file_digest(content, lambda: digest)
    return digest.hexdigest()


def describe_rows(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Count and hash of a set of problems."""
    digest, count = hashlib.sha256(), 0
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        count += 1
    return {"problems": count, "sha256": digest.hexdigest()}


def describe_problems(dataset: Any) -> dict[str, Any]:
    """Source, revision, count and hash of a `datasets` dataset of problems.

    The source is the dataset's description, the revision what its homepage names after `/tree/`.
    The hash is of ids, questions and answers in order, so that it is the same under any prompt; of
    all columns where one of these is missing; None, as the count, for a stream.
    """
    _, _, revision = (dataset.info.homepage or "").partition("/tree/")
    told = {"source": dataset.info.description or "", "revision": revision}
    if not hasattr(dataset, "__len__"):
        return {**told, "problems": None, "sha256": None}
    names = [n for n in ("problem_id", "question", "answer") if n in dataset.column_names]
    return told | describe_rows(dataset.select_columns(names) if len(names) == 3 else dataset)
