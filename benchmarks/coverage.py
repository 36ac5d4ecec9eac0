"""How often a 95 % interval holds the truth, by simulation: `python benchmarks/coverage.py`.

Accuracies: problems differ in difficulty (beta-distributed; `alike` 0: all the same, 1: each is
always right or never), a run samples each problem once or four times. Differences: a second run
solves a share of what the first one leaves. Each number is a share of the simulated runs; wanted
are 92 to 98 %. Few problems allow few values, so that some places can only be above that: at 0.01
none of 15 is right in 86 % of the runs, none or one in 99 %.
"""

import argparse

import numpy as np
from common import Number, tell

from anytime_lab.read.curves import mean_interval

ACCURACIES = (0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99)
PROBLEMS = (15, 30, 100)


def chances(rng: np.random.Generator, mean: float, alike: float, shape: tuple) -> np.ndarray:
    """Chance of each problem to be solved."""
    if alike in (0, 1):
        return np.full(shape, mean) if alike == 0 else (rng.random(shape) < mean).astype(float)
    size = (1 - alike) / alike
    return rng.beta(mean * size, (1 - mean) * size, shape)


def held(values: np.ndarray, bounds: tuple[float, float], truth: float) -> float:
    """Share of the columns (P, K) whose interval holds the truth."""
    told = mean_interval(values, bounds)
    return float(((told.low <= truth + 1e-12) & (truth - 1e-12 <= told.high)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=4000)
    parser.add_argument("--json", default="", help="write the numbers to this file, too")
    args = parser.parse_args()
    rng, numbers = np.random.default_rng(0), []

    def note(name: str, shares: list[float]) -> None:
        print(f"{name:<44}" + "".join(f"{100 * share:7.1f}" for share in shares))
        low, middle, high = np.min(shares), np.median(shares), np.max(shares)
        numbers.append(Number(name, middle, low, high, "held", ">= 0.92"))

    print(f"{'accuracy':<44}" + "".join(f"{mean:7.2f}" for mean in ACCURACIES))
    for samples in (1, 4):
        for problems in PROBLEMS:
            for alike in (0, 0.3, 0.7, 1) if samples > 1 else (0.3,):
                shares = []
                for mean in ACCURACIES:
                    drawn = chances(rng, mean, alike, (problems, args.trials))
                    right = rng.binomial(samples, drawn) / samples
                    shares.append(held(right, (0.0, 1.0), mean))
                note(f"{problems} problems, {samples} samples, alike {alike}", shares)
    print(f"{'anytime: accuracy at the last of 6 budgets':<44}    .20    .50    .80    .95    .99")
    for problems in PROBLEMS:
        shares = []
        for mean in (0.2, 0.5, 0.8, 0.95, 0.99):
            last = chances(rng, mean, 0.3, (problems, args.trials))
            when = np.ceil(6 * rng.random(last.shape))  # the budget that a thinking needs
            right = (rng.random(last.shape) < last) * (7 - when) / 6
            shares.append(held(right, (0.0, 1.0), mean * 3.5 / 6))
        note(f"{problems} problems, 1 sample, anytime", shares)
    print(f"{'difference: accuracy of the first run':<44}" + "    .50    .50    .90    .90    .97")
    for samples in (1, 4):
        for problems in PROBLEMS:
            shares = []
            for mean, gain in ((0.5, 0.0), (0.5, 0.2), (0.9, 0.0), (0.9, 0.5), (0.97, 0.0)):
                first = chances(rng, mean, 0.6, (problems, args.trials))
                pair = [
                    rng.binomial(samples, p) / samples for p in (first + gain * (1 - first), first)
                ]
                shares.append(held(pair[0] - pair[1], (-1.0, 1.0), gain * (1 - mean)))
            note(f"{problems} problems, {samples} samples, difference", shares)
    print("as numbers: the median over the places above, and in brackets the least and the most")
    tell("coverage", vars(args), numbers, args.json)


if __name__ == "__main__":
    main()
