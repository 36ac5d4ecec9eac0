"""Opens the run folder of an evaluation: what made it, and whether going on is the same work."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anytime_lab.engines.base import Engine
from anytime_lab.manifest import describe_model_folder, environment
from anytime_lab.records import (
    FORMAT,
    MANIFEST,
    RunFolderError,
    finished_chunks,
    read_manifest,
    remove_leftovers,
    write_json,
)


def open_folder(run_dir: Path, settings: dict, about: dict, chunks: int) -> None:
    """Starts a run folder, or makes sure that what is there was begun with the same settings."""
    now = environment()
    settings = json.loads(json.dumps(settings, default=str))  # as it will be read back
    if (run_dir / MANIFEST).exists():
        manifest = read_manifest(run_dir)
        _check_unchanged(run_dir, manifest.get("settings", {}), settings)
        before = manifest["sessions"][-1]["versions"]
        if before != now["versions"]:
            names = sorted(k for k in {*before, *now["versions"]})
            changed = [
                f"{k} {before.get(k)} → {now['versions'].get(k)}"
                for k in names
                if before.get(k) != now["versions"].get(k)
            ]
            warnings.warn(
                f"{run_dir} was begun with other versions ({', '.join(changed)}); the rest may "
                "differ from an unbroken run.",
                stacklevel=3,
            )
        manifest["sessions"].append(now)
    elif finished_chunks(run_dir):
        raise RunFolderError(
            f"{run_dir} holds records but no {MANIFEST}, so nobody knows how they were made. "
            "Evaluate into a new folder."
        )
    else:
        manifest = {"format": FORMAT, "settings": settings, "chunks": chunks, **about}
        manifest["sessions"] = [now]
    remove_leftovers(run_dir)
    write_json(run_dir / MANIFEST, manifest)


def _check_unchanged(run_dir: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [
        f"{name}: {before.get(name)!r} there, {now.get(name)!r} now"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise RunFolderError(
            f"{run_dir} holds an evaluation with other settings ({'; '.join(changed)}). Use a new "
            "folder, or delete this one to start over."
        )


def describe_plainly(thing: Any, names: Sequence[str]) -> dict[str, Any]:
    """The class of an object and those of its plain attributes that change what it does."""
    plain = (str, int, float, bool, type(None))
    told = {n: getattr(thing, n) for n in names if not n.startswith("_") and hasattr(thing, n)}
    return {
        "class": type(thing).__name__,
        **{n: value for n, value in told.items() if isinstance(value, plain)},
    }


def model_name(engine: Engine) -> str:
    config = getattr(getattr(engine, "model", None), "config", None)
    return getattr(config, "_name_or_path", "")


def describe_weights(engine: Engine, model: str | Path | None) -> str:
    """A hash of the weights that will run; the name where they are not at hand."""
    if hasattr(engine, "model"):
        return hash_weights(engine.model)
    if model is None:
        raise ValueError(
            f"{type(engine).__name__} holds no model to describe; say which one it runs with "
            "evaluate(…, model=PATH_OR_NAME)."
        )
    if Path(model).is_dir():
        return describe_model_folder(model)["sha256"]
    return str(model)


def hash_weights(model: Any) -> str:
    """SHA-256 over the names and bytes of a torch model's parameters and buffers."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
