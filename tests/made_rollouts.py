"""Rollout files, made up: scores go through the trainer's own arithmetic, text does not."""

import tempfile

import numpy as np
import tiny
import torch
from made_runs import text_of

from anytime_lab.store.rollouts import write_rollouts
from anytime_lab.train.recording import credit

SCORES = ((0.0, 0.5, 1.0), (0.0, 0.0, 0.5))


def write_tree(
    folder,
    step,
    scores=SCORES,
    budgets=(4, 8, 12),
    prior=(0.2, 0.3, 0.5),
    lengths=(12, 10),
    text=None,
    problems=(0,),
    summaries=2,
):
    """Writes one file: a group of thinkings (G, J) of mean scores, the same for each problem."""
    scores = torch.tensor(scores, dtype=torch.float64)
    lengths = [lengths[i % len(lengths)] for i in range(len(scores))]
    cuts = np.minimum(np.array(budgets)[None], np.array(lengths)[:, None])
    settings = {"budgets": list(budgets), "prior": list(prior)}
    config = tiny.config(tempfile.gettempdir(), **settings)
    leaf = scores[None, ..., None].expand(1, *scores.shape, summaries)
    told = credit(leaf, torch.tensor(cuts)[None], config)
    rows = []
    for problem in problems:
        for g, length in enumerate(lengths):
            words, ends = text_of(length)
            if text is not None:
                words, ends = text, [len(text) * (t + 1) // length for t in range(length)]
            rows.append(
                {
                    "problem": problem,
                    "sample": g,
                    "prompt": text or "What is 1?",
                    "thinking": words,
                    "token_ends": ends,
                    "tokens": length,
                    "end": "length" if length >= budgets[-1] else "closed",
                    "cuts": cuts[g].tolist(),
                    "scores": leaf[0, g].tolist(),
                    "summaries": [[text or "\\boxed{1}"] * summaries] * len(budgets),
                    **{name: value[0, g].tolist() for name, value in told.items()},
                }
            )
    write_rollouts(folder, step, {**settings, "baseline": "brpo"}, rows)
    return folder
