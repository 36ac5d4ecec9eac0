"""Frames of records, made up: what curves and measures are tested on."""

import numpy as np
import pandas as pd


def records(scores, answers=None, budgets=None, lengths=None):
    """scores: (P, n, J, S), NaN = abstained."""
    scores = np.asarray(scores, dtype=float)
    p, n, j, s = np.indices(scores.shape).reshape(4, -1)
    budgets = np.array(budgets or [10 * (i + 1) for i in range(scores.shape[2])])
    lengths = np.full(scores.shape[:2], budgets[-1]) if lengths is None else np.asarray(lengths)
    flat = scores.ravel()
    tokens = lengths[p, n]
    told = np.where(flat >= 1, "right", "wrong") if answers is None else np.ravel(answers)
    return pd.DataFrame(
        {
            "problem_id": [f"p{i}" for i in p],
            "sample": n,
            "budget": budgets[j],
            "summary": s,
            "cut": np.minimum(budgets[j], tokens),
            "thinking_tokens": tokens,
            "thinking_end": np.where(tokens >= budgets[-1], "length", "closed"),
            "finish": "eos",
            "answer": told,
            "score": flat,
            "correct": flat >= 1,
            "reason": "wrong",
        }
    )


# Two problems, two samples, two budgets, one summary.
SMALL = np.array([[[0, 1], [0, 1]], [[0, 0], [1, 1]]], dtype=float)[..., None]


def random_records(p=20, n=3, j=4, s=2, seed=0):
    rng = np.random.default_rng(seed)
    hard = rng.random((p, 1, 1, 1))
    return records((rng.random((p, n, j, s)) > hard).astype(float))
