"""The table that the BRPO paper published, as data to lay beside one's own curves.

Source: Qi et al., "Optimizing Anytime Reasoning via Budget Relative Policy Optimization",
arXiv 2505.13438v3. 32 budgets, every 250 tokens up to 8,000; 320 thinkings per question of AMC22
and AIME24, 80 of the others; anytime accuracy is the plain mean over the budgets. No error bars
were published, and the curves themselves only as pictures.
"""

from __future__ import annotations

import pandas as pd

SOURCE = "BRPO, arXiv 2505.13438v3"
BUDGETS = tuple(range(250, 8001, 250))
BENCHMARKS = ("AMC22", "AIME24", "MATH500", "Minerva", "Olympiad")
DATASETS = {
    "amc22_23": "AMC22",
    "aime24": "AIME24",
    "math500": "MATH500",
    "minerva": "Minerva",
    "olympiad_bench": "Olympiad",
}
FINAL = {
    "R1-Distill-1.5B": (56.4, 22.3, 81.1, 26.3, 42.0),
    "GRPO": (65.0, 28.9, 84.7, 28.9, 45.9),
    "AR-base": (68.4, 32.7, 85.5, 29.6, 47.3),
    "AR-linear": (68.6, 32.1, 85.6, 29.6, 47.3),
    "AR-uniform": (68.5, 32.2, 85.6, 29.2, 47.2),
}
ANYTIME = {
    "R1-Distill-1.5B": (48.2, 16.3, 74.5, 24.1, 36.0),
    "GRPO": (53.4, 19.0, 77.2, 26.6, 38.8),
    "AR-base": (57.0, 21.9, 78.2, 27.3, 40.2),
    "AR-linear": (58.2, 22.3, 79.0, 27.7, 40.9),
    "AR-uniform": (58.8, 22.9, 79.4, 27.5, 41.2),
}


def published_table(benchmark: str | None = None) -> pd.DataFrame:
    """The published accuracies as fractions.

    Args:
        benchmark: one of BENCHMARKS, or a dataset name of DATASETS; all of them if None.

    Returns columns run, benchmark, final (at 8,000 tokens), anytime (mean over BUDGETS).

    Raises:
        ValueError: the paper has no such benchmark.
    """
    wanted = BENCHMARKS if benchmark is None else (DATASETS.get(benchmark, benchmark),)
    if unknown := [name for name in wanted if name not in BENCHMARKS]:
        raise ValueError(f"the paper has no benchmark {unknown[0]!r}; it has {list(BENCHMARKS)}.")
    rows = [
        (run, name, FINAL[run][i] / 100, ANYTIME[run][i] / 100)
        for i, name in enumerate(BENCHMARKS)
        if name in wanted
        for run in FINAL
    ]
    return pd.DataFrame(rows, columns=["run", "benchmark", "final", "anytime"])
