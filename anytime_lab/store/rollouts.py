"""Rollout trees of training on disk: what was sampled, how it scored, what each token got.

`rollouts/step-000050.parquet` holds the trees of some problems that update 50 trained on, one row
per thinking. Advantages stand there under the run's own baseline and under the others, so that a
reader compares them without the formulas. Written whole or not at all.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pydantic

from anytime_lab.store.files import ROLLOUTS, RunFolderError, run_folder
from anytime_lab.store.records import Column, read_table, schema_of, write_table

ROLLOUT_FORMAT = "anytime_lab rollouts 1"
ADVANTAGE = "advantage_"  # before the name of a baseline, in a row and in a frame
_NUMBERS = pa.list_(pa.float64())
_COLUMNS = (  # without the keys a file holds no trees; what else it lacks is missing in the frame
    Column("problem", pa.int32(), key=True),  # place of the group in its generation
    Column("sample", pa.int32(), key=True),  # thinking within the group
    Column("prompt", pa.string()),  # as the model was given it
    Column("thinking", pa.string(), key=True),
    # token t ends before character token_ends[t]
    Column("token_ends", pa.list_(pa.int32()), key=True),
    Column("tokens", pa.int32(), key=True),
    Column("end", pa.string()),  # closed, eos, length
    # (J,) tokens of thinking kept: min(budget, tokens)
    Column("cuts", pa.list_(pa.int32()), key=True),
    # (J, S) of the summaries; NaN: the verifier abstained
    Column("scores", pa.list_(_NUMBERS), key=True),
    Column("summaries", pa.list_(pa.list_(pa.string())), key=True),  # (J, S)
    Column("summary_advantages", pa.list_(_NUMBERS)),  # (J, S), as trained
    Column("credited", _NUMBERS),  # (J,) r_j: mean score after the length penalty
    Column("returns", _NUMBERS),  # (J,) R_j
    Column("progress", _NUMBERS),  # (J,) V1, what the thinking's own earlier scores predict
    Column("group", _NUMBERS),  # (J,) V2, the mean return of the group
)
ROLLOUT_SCHEMA = schema_of(_COLUMNS)
_ADVANTAGES = Column("advantages", pa.map_(pa.string(), _NUMBERS))  # baseline → (J,)
_PER_BUDGET = [column.name for column in _COLUMNS if column.type == _NUMBERS]
_PER_SUMMARY = ["scores", "summaries", "summary_advantages"]
# The baselines that files of before the map have, each with a column of its own.
_OLD_NAMES = ("brpo", "grpo", "brpo_tokens", "group", "progress", "none")
_OLD = [Column(ADVANTAGE + name, _NUMBERS) for name in _OLD_NAMES]
_DELETE = "Delete it; the run's other steps are not touched by that."


class Rollouts(pydantic.BaseModel, frozen=True, extra="allow", arbitrary_types_allowed=True):
    """The trees that were kept of one generation, and what their file says of the run."""

    format: Literal["anytime_lab rollouts 1"]
    step: int = 0  # the update that trained on them
    budgets: tuple[int, ...] = pydantic.Field(min_length=1)  # J
    prior: tuple[float, ...]  # (J,) P_j of the run
    baseline: str  # the run's own
    methods: dict[str, str] = {}  # baseline → words
    # Those that the file knows advantages under. "grpo" is the final score against the group's
    # mean, whatever prior the run has; the others are under the run's prior.
    baselines: tuple[str, ...] = ()
    # One row per thinking, columns of ROLLOUT_SCHEMA, and (J,) advantages of the tokens up to b_j
    # under each baseline, by its name after ADVANTAGE.
    frame: pd.DataFrame = pd.DataFrame()


def rollout_path(run_dir: str | Path, step: int) -> Path:
    """Where the trees of an update lie."""
    return run_folder(run_dir) / ROLLOUTS / f"step-{step:06d}.parquet"


def write_rollouts(
    run_dir: str | Path, step: int, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Writes the trees of one update.

    Args:
        settings: JSON values: `budgets`, `prior` and `baseline`, and what else tells the run.
        rows: one per thinking, keys as the columns of `Rollouts.frame`.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written.
    """
    about = json.dumps({"format": ROLLOUT_FORMAT, "step": step, **settings})
    told = []
    for row in rows:
        known = {k.removeprefix(ADVANTAGE): v for k, v in row.items() if k.startswith(ADVANTAGE)}
        told.append({**row, _ADVANTAGES.name: list(known.items())})
    data = pa.Table.from_pylist(told, schema=schema_of([*_COLUMNS, _ADVANTAGES]))
    write_table(rollout_path(run_dir, step), data.replace_schema_metadata({"about": about}))


def rollout_steps(run_dir: str | Path) -> list[int]:
    """The updates whose trees lie in a run folder, in order."""
    steps = (path.stem[5:] for path in (run_folder(run_dir) / ROLLOUTS).glob("step-*.parquet"))
    return sorted(int(step) for step in steps if step.isdecimal())


def drop_rollouts_after(run_dir: str | Path, step: int) -> None:
    """Removes the trees of later updates: a run that is resumed there writes its own."""
    for later in rollout_steps(run_dir):
        if later > step:
            rollout_path(run_dir, later).unlink(missing_ok=True)


def read_rollouts(run_dir: str | Path, step: int) -> Rollouts:
    """Reads the trees of one update. A column that the file lacks is null, one too many ignored.

    Raises:
        RunFolderError: the file is missing, damaged or something else.
    """
    path = rollout_path(run_dir, step)
    if not path.exists():
        raise RunFolderError(f"{path} does not exist; choose one of the steps there.")
    data = read_table(path, [*_COLUMNS, _ADVANTAGES, *_OLD], None, _DELETE)
    try:
        told = Rollouts.model_validate_json((data.schema.metadata or {}).get(b"about", b""))
    except pydantic.ValidationError as error:
        raise RunFolderError(
            f"{path} does not say that it is {ROLLOUT_FORMAT!r}; it was written by something else "
            "or by another version."
        ) from error
    frame, baselines = _frame(data.to_pandas(), len(told.budgets))
    per_budget = [*_PER_BUDGET, *_PER_SUMMARY, "cuts", *(ADVANTAGE + name for name in baselines)]
    try:  # a file that is a table but no tree is told here, not in a figure
        sound = len(frame) > 0 and all(
            {len(row[name]) for name in per_budget} == {len(told.budgets)}
            and len({len(one) for name in _PER_SUMMARY for one in row[name]}) == 1
            and len(row["token_ends"]) == row["tokens"]
            for row in frame.to_dict("records")
        )
    except TypeError:  # a null where a list belongs
        sound = False
    if not sound or len(told.prior) != len(told.budgets):
        raise RunFolderError(
            f"{path} holds trees whose parts do not fit {len(told.budgets)} budgets; it is "
            f"damaged. {_DELETE}"
        )
    return told.model_copy(update={"step": step, "frame": frame, "baselines": baselines})


def _frame(data: pd.DataFrame, budgets: int) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The frame of `Rollouts` and its baselines; NaN where a column is missing."""
    frame = data[ROLLOUT_SCHEMA.names].copy()
    for name in frame.columns[frame.isna().all()]:
        if name == "summary_advantages":
            frame[name] = [[row * np.nan for row in tree] for tree in frame["scores"]]
        else:
            nothing = np.full(budgets, np.nan) if name in _PER_BUDGET else ""
            frame[name] = [nothing] * len(frame)
    told = data[_ADVANTAGES.name]
    if told.notna().all():
        known = pd.DataFrame([dict(pairs) for pairs in told]).add_prefix(ADVANTAGE)
    else:
        known = data[[column.name for column in _OLD]].dropna(axis=1)
    return frame.join(known), tuple(name.removeprefix(ADVANTAGE) for name in known)
