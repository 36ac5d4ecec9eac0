"""Run folders of evaluations, made up: what the views are tested on."""

import numpy as np

from anytime_lab.store.records import FORMAT, write_json, write_part

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
                        "answer": answer if answers is None else answers[p][n][j][s],
                        "score": None if np.isnan(score) else score,
                        "correct": score == 1,
                        "reason": "correct" if score == 1 else "wrong",
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


def told(figure):
    """What a figure says that has nothing to draw."""
    assert not figure.data
    return " ".join(figure.layout.annotations[0].text.split("<br>"))
