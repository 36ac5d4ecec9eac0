"""Kept rollouts → one thinking, budget by budget, and what its credit says in sentences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from anytime_lab.read.runs import Runs, folder_name, named_runs, run_folders, told_error
from anytime_lab.store.files import METRICS, ROLLOUTS
from anytime_lab.store.rollouts import ADVANTAGE, Rollouts, rollout_steps

METHOD_WORDS = {  # short; of other baselines, what the run says of them
    "brpo": "BRPO",
    "grpo": "GRPO (final score only)",
    "brpo_tokens": "BRPO, mixed by tokens",
    "group": "group baseline alone",
    "progress": "progress baseline alone",
    "none": "no baseline",
}
MARKER = re.compile(r"<\|[^|>]*\|>|</?\w+>|\[/?INST\]")  # of a chat template
ROLE = re.compile(r"\s*(system|user|assistant)\s*\n")
NOTHING = 5e-4  # an advantage below this is written 0.000


def find_rollouts(runs: Runs) -> tuple[dict[str, Path], list[str]]:
    """Training runs with kept rollouts, by name, and a sentence for every folder without."""
    found: dict[str, Path] = {}
    complaints = []
    for name, path in named_runs(runs):
        try:
            folders = run_folders(path, ROLLOUTS)
            if not folders:
                complaints.append(_told_missing(path))
            for folder in folders:
                if rollout_steps(folder):
                    found[folder_name(name, path, folder)] = folder
                else:
                    complaints.append(f"{folder} holds no rollouts yet.")
        except Exception as error:  # whatever is on that disk, the view goes on
            complaints.append(told_error(path, error))
    return found, complaints


def _told_missing(path: Path) -> str:
    if not path.is_dir():
        return f"{path} is not a folder; give the output folder of a training run."
    if (path / METRICS).exists():
        return (
            f"{path} is a training run that kept no rollouts: it has no {ROLLOUTS}/. Train with "
            "save_rollouts_steps above 0 to see credit."
        )
    return f"{path} holds no {ROLLOUTS}/; give the output folder of a training run."


def method_words(rollouts: Rollouts) -> dict[str, str]:
    """The baselines under which a file knows advantages, in words."""
    told = rollouts.settings.get("methods") or {}
    order = [*METHOD_WORDS, *rollouts.baselines]
    return {
        name: METHOD_WORDS.get(name) or str(told.get(name, name))
        for name in sorted(rollouts.baselines, key=order.index)
    }


def question_of(prompt: str) -> str:
    """What the user asked, out of a prompt in the format of its model; all of it if unclear."""
    parts = [part for part in MARKER.split(prompt) if part.strip()]
    asked = [part for part in parts if (role := ROLE.match(part)) and role[1] == "user"]
    if asked:
        return ROLE.sub("", asked[-1], count=1).strip()
    return max(parts, key=len, default=prompt).strip()


def credit_frame(rollouts: Rollouts, row: pd.Series) -> pd.DataFrame:
    """One thinking, budget by budget.

    Returns columns budget, prior, start, end (its tokens start + 1 … end lead to the budget; none
    where the thinking had ended), score (r_j), return (R_j), progress (V1), group (V2), brpo (V),
    and the advantage of those tokens under each method, by its name after "advantage_".
    """
    cuts = np.asarray(row["cuts"], dtype=int)
    frame = pd.DataFrame(
        {
            "budget": rollouts.budgets,
            "prior": rollouts.prior,
            "start": [0, *cuts[:-1]],
            "end": cuts,
            "score": row["credited"],
            "return": row["returns"],
            "progress": row["progress"],
            "group": row["group"],
            **{f"{ADVANTAGE}{name}": row[f"{ADVANTAGE}{name}"] for name in method_words(rollouts)},
        }
    )
    frame["brpo"] = frame["return"] - frame.get(f"{ADVANTAGE}brpo", np.nan)
    return frame


def largest_advantage(frame: pd.DataFrame, methods: Iterable[str]) -> float:
    """The largest absolute advantage of a thinking's tokens, the end of its colour scale."""
    trained = frame.loc[frame["end"] > frame["start"], [f"{ADVANTAGE}{m}" for m in methods]]
    return float(np.nanmax(np.abs(trained.to_numpy(float)), initial=0.0))


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, the true minus, and none on zero."""
    told = f"{value:+.{digits}f}"
    return told[1:] if float(told) == 0 else told.replace("-", "−")


def told_credit(frame: pd.DataFrame, methods: Mapping[str, str]) -> str:
    """What one thinking shows, in sentences that its numbers bear out.

    Args:
        frame: of credit_frame().
        methods: name → words, of those compared.
    """
    trained = frame[frame["end"] > frame["start"]]
    if not len(trained):
        return "This thinking has no token."
    columns = [f"advantage_{m}" for m in methods]
    if len(frame) == 1:
        line = frame.iloc[0]
        return (
            f"This run scored its rollouts at one budget only, {line['budget']:,.0f} tokens: there "
            "is no earlier score to build a progress baseline on, so BRPO is GRPO here. All "
            f"{line['end']:,.0f} tokens are credited {signed(line[columns[0]])} alike, those that "
            "led to the answer and those that did not."
        )
    scores = ", ".join("—" if s != s else f"{s:.2f}" for s in frame["score"])
    budgets = ", ".join(f"{b:,}" for b in frame["budget"])
    said = [f"The summaries score {scores} at {budgets} tokens."]
    if (trained[columns].abs() < NOTHING).all(axis=None):
        return f"{said[0]} No token is credited or blamed: nothing is learnt from this thinking."
    said += [_told_method(trained, method, words) for method, words in methods.items()]
    return " ".join([*said, _told_rise(frame, methods)]).strip()


def _told_method(trained: pd.DataFrame, method: str, name: str) -> str:
    values = trained[f"{ADVANTAGE}{method}"]
    if values.max() - values.min() < NOTHING:
        count = int(trained["end"].max())
        return f"Under {name} all {count:,} tokens get {signed(values.iloc[0])}."
    most, least = trained.loc[values.idxmax()], trained.loc[values.idxmin()]
    return (
        f"Under {name} {_stretch(most)} get the most ({signed(values.max())}), {_stretch(least)} "
        f"the least ({signed(values.min())})."
    )


def _told_rise(frame: pd.DataFrame, methods: Mapping[str, str]) -> str:
    """What happens after the largest rise of the score, where BRPO is shown and there is more."""
    if "brpo" not in methods:
        return ""
    rises = frame["score"].diff()
    rises.iloc[0] = frame["score"].iloc[0]
    if rises.isna().all() or rises.max() <= 0:
        return ""
    at = int(rises.idxmax())
    rise, after = frame.iloc[at], frame.iloc[at + 1 :]
    after = after[after["end"] > after["start"]]
    if not len(after) or after["advantage_brpo"].iloc[0] >= rise["advantage_brpo"] - NOTHING:
        return ""
    then = after.iloc[0]
    others = [m for m in methods if m != "brpo"]
    against = (
        f"; {methods[others[0]]} gives them {signed(then[f'advantage_{others[0]}'])}"
        if others
        else ""
    )
    return (
        f"The score rises most in {_stretch(rise)}. After that the progress baseline expects it "
        f"(V1 {then['progress']:.2f} of R {then['return']:.2f}), so BRPO gives {_stretch(then)} "
        f"{signed(then['advantage_brpo'])}{against}."
    )


def _stretch(line: pd.Series) -> str:
    return told_tokens(line["start"], line["end"])


def told_tokens(start: float, end: float) -> str:
    """The tokens after the first `start` ones up to `end`, counted from 1."""
    if end - start <= 1:
        return f"token {end:,.0f}"
    return f"tokens {start + 1:,.0f}–{end:,.0f}"


def told_budget(frame: pd.DataFrame, budget: int, methods: Mapping[str, str]) -> str:
    """The numbers of one budget in words."""
    line = frame[frame["budget"] == budget].iloc[0]
    score = "no score" if pd.isna(line["score"]) else f"score {line['score']:.2f}"
    values = "; ".join(
        f"{words} {signed(line[f'{ADVANTAGE}{m}'], 3)}" for m, words in methods.items()
    )
    if line["end"] > line["start"]:
        lead = "leads" if line["end"] - line["start"] == 1 else "lead"
        where = f"{_stretch(line)} {lead} here. Advantage: {values}."
    else:
        where = "the thinking had ended before, so no token of it is trained for this budget."
    return (
        f"At {budget:,} tokens: {score}, return R {line['return']:.3f}, progress baseline V1 "
        f"{line['progress']:.3f}, group baseline V2 {line['group']:.3f}, BRPO baseline V "
        f"{line['brpo']:.3f}; {where}"
    )
