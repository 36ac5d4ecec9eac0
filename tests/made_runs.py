"""Records, run folders and rollouts, made up: what frames and views are tested on."""

import tempfile

import numpy as np
import pandas as pd

from anytime_lab.store.files import write_json
from anytime_lab.store.records import FORMAT, write_part
from anytime_lab.store.rollouts import write_rollouts

BUDGETS = (8, 16, 24, 32)


def text_of(tokens):
    """Thinking of one word a token, and where each ends."""
    words = [f"w{t} " for t in range(tokens)]
    return "".join(words), np.cumsum([len(w) for w in words]).tolist()


def write_run(
    folder,
    right,
    budgets=BUDGETS,
    dataset="countdown",
    model="",
    lengths=None,
    answers=None,
    parts=1,
    written=None,
    thinking=None,
    question="What is 1?",
    summary_text="\\boxed{1}",
    problems=None,
):
    """Writes an evaluation. right: (P, n, J, S) of 0, 1 or NaN (abstained).

    answers: as `right`, strings or None; "1" where right and "0" where wrong unless given.
    parts: samples are dealt out to so many parts. written: how many of them are written.
    """
    right = np.asarray(right, dtype=float)
    names = problems or [f"p{p}" for p in range(right.shape[0])]
    manifest = {"format": FORMAT, "chunks": parts, "dataset": {"name": dataset}}
    write_json(folder / "manifest.json", {**manifest, "model_path": model})
    for part in range(parts if written is None else written):
        rows, thoughts = [], []
        for p, n in np.ndindex(right.shape[:2]):
            if n % parts != part:
                continue
            length = budgets[-1] if lengths is None else int(lengths[p][n])
            told, ends = text_of(length)
            end = "closed" if lengths is not None and length < budgets[-1] else "length"
            thoughts.append(
                {
                    "problem_id": names[p],
                    "sample": n,
                    "question": question,
                    "gold": "1",
                    "thinking": told if thinking is None else thinking,
                    "token_ends": ends,
                    "tokens": length,
                    "end": end,
                }
            )
            for j, s in np.ndindex(right.shape[2:]):
                score = right[p, n, j, s]
                answer = "1" if score == 1 else "0"
                if answers is not None:
                    answer = answers[p][n][j][s]
                wrong = "no answer" if answer is None else "wrong"
                rows.append(
                    {
                        "problem_id": names[p],
                        "sample": n,
                        "budget": budgets[j],
                        "summary": s,
                        "cut": min(budgets[j], length),
                        "thinking_tokens": length,
                        "thinking_end": end,
                        "summary_tokens": 4,
                        "finish": "eos",
                        "answer": answer,
                        "score": None if np.isnan(score) else score,
                        "correct": score == 1,
                        "reason": "correct" if score == 1 else wrong,
                        "logprob": -0.1 - 0.9 * (score != 1) - 0.05 * j,
                        "summary_text": summary_text,
                    }
                )
        write_part(folder, "thinkings", part, thoughts)
        write_part(folder, "records", part, rows)
    return folder


def random_right(p=30, n=4, s=2, lead=0.0, seed=0, budgets=4):
    """Scores that rise with the budget, of a run that is better by `lead`."""
    rng = np.random.default_rng(seed)
    hard = np.random.default_rng(99).random((p, 1, 1, 1))
    rise = np.linspace(0.1, 0.8, budgets)[None, None, :, None]
    return (rng.random((p, n, budgets, s)) < np.clip(rise + 0.4 - 0.6 * hard + lead, 0, 1)) * 1.0


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
    """Writes one file of rollouts: a group of thinkings of mean scores (G, J), for each problem.

    Scores go through the trainer's own arithmetic, text does not.
    """
    import tiny
    import torch

    from anytime_lab.train.recording import credit

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


# --- frames


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


def told(figure):
    """What a figure says that has nothing to draw."""
    assert not figure.data
    return " ".join(figure.layout.annotations[0].text.split("<br>"))
