"""Kept rollouts → one thinking, budget by budget, and what its credit says in sentences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from anytime_lab.read.runs import Runs, folder_name, found_folders, told_error
from anytime_lab.read.told import signed
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
    for name, path, folder in found_folders(runs, ROLLOUTS):
        try:
            if rollout_steps(folder):
                found[folder_name(name, path, folder)] = folder
            else:
                complaints.append(_told_missing(folder))
        except Exception as error:  # whatever is on that disk, the view goes on
            complaints.append(told_error(folder, error))
    return found, complaints


def _told_missing(path: Path) -> str:
    if (path / ROLLOUTS).exists():
        return f"{path} holds no rollouts yet."
    if (path / METRICS).exists():
        return (
            f"{path} is a training run that kept no rollouts: it has no {ROLLOUTS}/. Train with "
            "save_rollouts_steps above 0 to see credit."
        )
    found = f"holds no {ROLLOUTS}/" if path.is_dir() else "is not a folder"
    return f"{path} {found}; give the output folder of a training run."


def method_words(rollouts: Rollouts) -> dict[str, str]:
    """The baselines under which a file knows advantages, in words."""
    own = {name: rollouts.methods.get(name, name) for name in rollouts.baselines}
    every = METHOD_WORDS | own | METHOD_WORDS  # ours first, and in our words
    return {name: words for name, words in every.items() if name in own}


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


def told_credit(frame: pd.DataFrame, methods: Mapping[str, str]) -> str:
    """What one thinking shows, in sentences that its numbers bear out.

    Args:
        frame: of credit_frame().
        methods: name → words, of those compared.
    """
    trained = frame[frame["end"] > frame["start"]]
    if not len(trained):
        return "This thinking has no token."
    advantages = {words: trained[f"{ADVANTAGE}{method}"] for method, words in methods.items()}
    if len(frame) == 1:
        return (
            f"This run scored its rollouts at one budget only, {frame['budget'][0]:,.0f} tokens: "
            "there is no earlier score to build a progress baseline on, so BRPO is GRPO here. All "
            f"{frame['end'][0]:,.0f} tokens are credited "
            f"{signed(next(iter(advantages.values()))[0])} alike, those that led to the answer and "
            "those that did not."
        )
    scores = ", ".join("—" if s != s else f"{s:.2f}" for s in frame["score"])
    budgets = ", ".join(f"{b:,}" for b in frame["budget"])
    said = [f"The summaries score {scores} at {budgets} tokens."]
    if all((values.abs() < NOTHING).all() for values in advantages.values()):
        return f"{said[0]} No token is credited or blamed: nothing is learnt from this thinking."
    for words, values in advantages.items():
        if values.max() - values.min() < NOTHING:
            count = int(trained["end"].max())
            said.append(f"Under {words} all {count:,} tokens get {signed(values.iloc[0])}.")
        else:
            most, least = (told_stretch(frame.loc[at]) for at in (values.idxmax(), values.idxmin()))
            said.append(
                f"Under {words} {most} get the most ({signed(values.max())}), {least} the least "
                f"({signed(values.min())})."
            )
    return " ".join([*said, *_told_rise(frame, methods)])


def _told_rise(frame: pd.DataFrame, methods: Mapping[str, str]) -> list[str]:
    """What happens after the largest rise of the score, where BRPO is shown and there is more."""
    rises = frame["score"].diff().fillna({0: frame["score"][0]})
    if "brpo" not in methods or not rises.max() > 0:
        return []
    at = int(rises.idxmax())
    rise, after = frame.iloc[at], frame.iloc[at + 1 :]
    after, own = after[after["end"] > after["start"]], f"{ADVANTAGE}brpo"
    if not len(after) or after[own].iloc[0] >= rise[own] - NOTHING:
        return []
    then = after.iloc[0]
    others = [
        f"; {words} gives them {signed(then[f'{ADVANTAGE}{method}'])}"
        for method, words in methods.items()
        if method != "brpo"
    ]
    return [
        f"The score rises most in {told_stretch(rise)}. After that the progress baseline expects "
        f"it (V1 {then['progress']:.2f} of R {then['return']:.2f}), so BRPO gives "
        f"{told_stretch(then)} {signed(then[own])}{''.join(others[:1])}."
    ]


def told_stretch(line: pd.Series) -> str:
    """The tokens after `start` up to `end` of a line of credit_frame(), counted from 1."""
    if line.end - line.start <= 1:
        return f"token {line.end:,.0f}"
    return f"tokens {line.start + 1:,.0f}–{line.end:,.0f}"


def told_budget(frame: pd.DataFrame, budget: int, methods: Mapping[str, str]) -> str:
    """The numbers of one budget in words."""
    line = frame[frame["budget"] == budget].iloc[0]
    score = "no score" if pd.isna(line["score"]) else f"score {line['score']:.2f}"
    where = "the thinking had ended before, so no token of it is trained for this budget."
    if line["end"] > line["start"]:
        lead = "leads" if line["end"] - line["start"] == 1 else "lead"
        values = [f"{words} {signed(line[f'{ADVANTAGE}{m}'], 3)}" for m, words in methods.items()]
        where = f"{told_stretch(line)} {lead} here. Advantage: {'; '.join(values)}."
    return (
        f"At {budget:,} tokens: {score}, return R {line['return']:.3f}, progress baseline V1 "
        f"{line['progress']:.3f}, group baseline V2 {line['group']:.3f}, BRPO baseline V "
        f"{line['brpo']:.3f}; {where}"
    )
