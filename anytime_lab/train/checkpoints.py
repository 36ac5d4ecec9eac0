"""Which checkpoints can be resumed: they are written in place, so a killed run leaves parts."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.trainer_utils import rotate_checkpoints

from anytime_lab.store.records import RunFolderError, write_json

# Written last: its presence says that all the rest was written, and it lists what that is.
STATE_FILE = "brpo_state.json"

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model_fsdp_0",
    "pytorch_model_fsdp.bin",
)
_OPTIMIZER = ("optimizer.pt", "optimizer.bin", "optimizer_0", "optimizer_0.bin")


def missing_parts(checkpoint: str | Path) -> list[str]:
    """What a checkpoint lacks to be resumed; empty if it is complete.

    Args:
        checkpoint: a folder `checkpoint-<step>` that a `BRPOTrainer` wrote.
    """
    folder = Path(checkpoint)
    missing = []
    listed: Mapping[str, int] = {}
    with contextlib.suppress(OSError, ValueError):
        listed = read_state(folder).get("files", {})
    for name in ("trainer_state.json", STATE_FILE):
        try:
            json.loads((folder / name).read_text())
        except (OSError, ValueError):
            missing.append(name)
    # DeepSpeed keeps weights and optimizer in one folder named after the step.
    if not any(folder.glob("global_step*")):
        if not any((folder / name).exists() for name in _WEIGHTS):
            missing.append("the model's weights")
        if not any((folder / name).exists() for name in _OPTIMIZER):
            missing.append("optimizer.pt")
    if not (folder / "scheduler.pt").exists():
        missing.append("scheduler.pt")
    if not any(folder.glob("rng_state*.pth")):
        missing.append("rng_state.pth")
    for name, size in listed.items():
        found = folder / name
        if name not in missing and (not found.is_file() or found.stat().st_size != size):
            missing.append(name)
    return missing


@contextlib.contextmanager
def whole_checkpoint(folder: Path, args: Any, best: str | None) -> Iterator[None]:
    """Around all writing of a checkpoint: earlier ones are deleted only once it is whole.

    transformers deletes what `save_total_limit` allows before the last file is there; a run killed
    then would have nothing to go on from.

    Args:
        folder: of the checkpoint.
        args: of the run; `save_total_limit` is off inside the block.
        best: a checkpoint that is kept in any case.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written.
    """
    limit, args.save_total_limit = args.save_total_limit, None
    try:
        if args.should_save:  # of the same step, before the run went back and came here again
            (folder / STATE_FILE).unlink(missing_ok=True)
        yield
    except (OSError, SafetensorError, RuntimeError, RunFolderError) as error:
        last = last_complete_checkpoint(folder.parent)
        kept = f"{last} is whole; training goes on from there" if last else "Training begins anew"
        raise RunFolderError(
            f"could not write {folder}: {error}. {kept} once there is space "
            "and the folder can be written. A lower save_total_limit needs less."
        ) from error
    finally:
        args.save_total_limit = limit
    if args.should_save:
        rotate_checkpoints(str(folder.parent), limit, best, use_mtime=True)


def mark_complete(checkpoint: str | Path, state: Mapping[str, Any]) -> None:
    """Write the last file of a checkpoint, once all others have reached the disk."""
    folder, files = Path(checkpoint), {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != STATE_FILE:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            files[str(path.relative_to(folder))] = path.stat().st_size
    write_json(folder / STATE_FILE, {**state, "files": files})


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """The complete checkpoint of the highest step under `output_dir`, or None.

    For `trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir))`, which
    starts from the beginning where there is none.
    """
    found = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        step = folder.name.removeprefix("checkpoint-")
        if step.isdecimal() and folder.is_dir() and not missing_parts(folder):
            found.append((int(step), str(folder)))
    return max(found)[1] if found else None


def read_state(checkpoint: str | Path) -> dict[str, Any]:
    """What `BRPOTrainer` adds to a checkpoint (`mark_complete`); empty where there is nothing."""
    path = Path(checkpoint) / STATE_FILE
    return json.loads(path.read_text()) if path.exists() else {}


def checkpoint_to_resume(output_dir: str | Path, wanted: str | bool | None) -> str | None:
    """The folder that `resume_from_checkpoint` means; None to start from the beginning.

    Args:
        output_dir: of the run.
        wanted: a folder, True for the last complete one in `output_dir`, or None or False.

    Raises:
        ValueError: there is no such checkpoint, or it lacks a part.
    """
    if not wanted:
        return None
    if wanted is True:
        path = last_complete_checkpoint(output_dir)
        if path is None:
            raise ValueError(
                f"no complete checkpoint lies in {output_dir}. Start with "
                "resume_from_checkpoint=None, or pass last_complete_checkpoint(output_dir), "
                "which is None where there is none."
            )
        return path
    if missing := missing_parts(wanted):
        raise ValueError(
            f"{wanted} cannot be resumed: {', '.join(missing)} missing, as when a run was "
            "killed while writing. Pass last_complete_checkpoint(output_dir)."
        )
    return str(wanted)


def step_of(checkpoint: str | Path) -> int:
    """Optimiser steps that a complete checkpoint has behind it."""
    return json.loads((Path(checkpoint) / "trainer_state.json").read_text())["global_step"]
