"""Rollout trees of training on disk: what was sampled, how it scored, what each token was credited.

`rollouts/step-000050.parquet` holds the trees of some problems that update 50 trained on, one row
per thinking. Advantages stand there under the run's own baseline and under the others, so that a
reader compares them without the formulas. Written whole or not at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from anytime_lab.store.records import RunFolderError, write_table

ROLLOUTS = "rollouts"
ROLLOUT_FORMAT = "anytime_lab rollouts 1"
# "grpo" is the final score against the group's mean, whatever prior the run has; the others are
# the choices of BRPOConfig.baseline, under the run's prior.
METHODS = ("brpo", "grpo", "brpo_tokens", "group", "progress", "none")
_NUMBERS = pa.list_(pa.float64())
ROLLOUT_SCHEMA = pa.schema(
    [
        ("problem", pa.int32()),  # place of the group in its generation
        ("sample", pa.int32()),  # thinking within the group
        ("prompt", pa.string()),  # as the model was given it
        ("thinking", pa.string()),
        ("token_ends", pa.list_(pa.int32())),  # token t ends before character token_ends[t]
        ("tokens", pa.int32()),
        ("end", pa.string()),  # closed, eos, length
        ("cuts", pa.list_(pa.int32())),  # (J,) tokens of thinking kept: min(budget, tokens)
        ("scores", pa.list_(_NUMBERS)),  # (J, S) of the summaries; NaN: the verifier abstained
        ("summaries", pa.list_(pa.list_(pa.string()))),  # (J, S)
        ("summary_advantages", pa.list_(_NUMBERS)),  # (J, S), as trained
        ("credited", _NUMBERS),  # (J,) r_j: mean score after the length penalty
        ("returns", _NUMBERS),  # (J,) R_j
        ("progress", _NUMBERS),  # (J,) V1, what the thinking's own earlier scores predict
        ("group", _NUMBERS),  # (J,) V2, the mean return of the group
        *((f"advantage_{name}", _NUMBERS) for name in METHODS),  # (J,) of the tokens up to b_j
    ]
)
_PER_BUDGET = [f.name for f in ROLLOUT_SCHEMA if f.type == _NUMBERS] + ["cuts"]
_PER_SUMMARY = ["scores", "summaries", "summary_advantages"]
_STEP = re.compile(r"step-(\d+)\.parquet$")


@dataclass(frozen=True)
class Rollouts:
    """The trees that were kept of one generation.

    Attributes:
        step: The update that trained on them.
        budgets: J.
        prior: (J,) P_j of the run.
        baseline: The run's own, one of METHODS but "grpo".
        settings: What else the file says of the run.
        frame: One row per thinking, columns of ROLLOUT_SCHEMA.
    """

    step: int
    budgets: tuple[int, ...]
    prior: tuple[float, ...]
    baseline: str
    settings: dict[str, Any]
    frame: pd.DataFrame


def rollout_path(run_dir: str | Path, step: int) -> Path:
    """Where the trees of an update lie."""
    return Path(run_dir) / ROLLOUTS / f"step-{step:06d}.parquet"


def write_rollouts(
    run_dir: str | Path, step: int, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Writes the trees of one update.

    Args:
        settings: JSON values: `budgets`, `prior` and `baseline`, and what else tells the run.
        rows: one per thinking, keys of ROLLOUT_SCHEMA.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written.
    """
    about = json.dumps({"format": ROLLOUT_FORMAT, "step": step, **settings})
    data = pa.Table.from_pylist([dict(row) for row in rows], schema=ROLLOUT_SCHEMA)
    write_table(rollout_path(run_dir, step), data.replace_schema_metadata({"about": about}))


def rollout_steps(run_dir: str | Path) -> list[int]:
    """The updates whose trees lie in a run folder, in order."""
    paths = (Path(run_dir) / ROLLOUTS).glob("step-*.parquet")
    return sorted(int(match[1]) for path in paths if (match := _STEP.search(path.name)))


def drop_rollouts_after(run_dir: str | Path, step: int) -> None:
    """Removes the trees of later updates: a run that is resumed there writes its own."""
    for later in rollout_steps(run_dir):
        if later > step:
            rollout_path(run_dir, later).unlink(missing_ok=True)


def read_rollouts(run_dir: str | Path, step: int) -> Rollouts:
    """Reads the trees of one update.

    Raises:
        RunFolderError: the file is missing, damaged or something else.
    """
    path = rollout_path(run_dir, step)
    try:
        data = pq.read_table(path)
    except FileNotFoundError:
        raise RunFolderError(f"{path} does not exist; choose one of the steps there.") from None
    except (OSError, pa.ArrowException, ValueError) as error:
        raise RunFolderError(
            f"{path} is damaged ({str(error).splitlines()[0]}). Delete it; the run's other steps "
            "are not touched by that."
        ) from error
    about = _about(path, data)
    if missing := [name for name in ROLLOUT_SCHEMA.names if name not in data.column_names]:
        raise RunFolderError(f"{path} has no column {missing}: it holds no rollouts.")
    frame = data.select(ROLLOUT_SCHEMA.names).to_pandas()
    _check_lengths(path, frame, len(about["budgets"]))
    return Rollouts(
        step=step,
        budgets=tuple(about["budgets"]),
        prior=tuple(about["prior"]),
        baseline=about["baseline"],
        settings=about,
        frame=frame,
    )


def _about(path: Path, data: pa.Table) -> dict[str, Any]:
    try:
        about = json.loads((data.schema.metadata or {})[b"about"])
        budgets, prior = about["budgets"], about["prior"]
        known = (
            about["format"] == ROLLOUT_FORMAT
            and about["baseline"] in METHODS
            and budgets
            and all(isinstance(b, int) for b in budgets)
            and all(isinstance(p, float | int) for p in prior)
            and len(budgets) == len(prior)
        )
    except (KeyError, ValueError, TypeError):
        known = False
    if not known:
        raise RunFolderError(
            f"{path} does not say that it is {ROLLOUT_FORMAT!r}; it was written by something else "
            "or by another version."
        )
    return about


def _check_lengths(path: Path, frame: pd.DataFrame, budgets: int) -> None:
    """A file that is a table but no tree is told here, not in a figure."""
    try:
        sound = len(frame) > 0 and all(
            len(value) == budgets for name in [*_PER_BUDGET, *_PER_SUMMARY] for value in frame[name]
        )
        sound = sound and all(
            len({len(row) for name in _PER_SUMMARY for row in tree[name]}) == 1
            and len(tree["token_ends"]) == tree["tokens"]
            for tree in frame[[*_PER_SUMMARY, "token_ends", "tokens"]].to_dict("records")
        )
    except TypeError:  # a null where a list belongs
        sound = False
    if not sound:
        raise RunFolderError(
            f"{path} holds trees whose parts do not fit {budgets} budgets; it is damaged. Delete "
            "it; the run's other steps are not touched by that."
        )
