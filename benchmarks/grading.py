"""Throughput of the maths verifier: `python benchmarks/grading.py [--quick]`.

Three loads, each pair another one, so that nothing is remembered from an earlier call: the easy
majority (equal strings and numbers, settled in this process), all that needs algebra (decided by
workers), and a mix. Seconds are of the clock, after the workers have started.
"""

import argparse
import time
from collections.abc import Sequence

from common import number, tell

from anytime_lab.verify.verifiers import MathVerifier

Pairs = list[tuple[str, str]]


def easy_pairs(count: int, start: int = 0) -> Pairs:
    """Pairs that equality of strings or numbers settles, a third of them wrong."""
    pairs = []
    for n in range(start, start + count):
        a = 3 * n + 7
        pairs.append(
            [
                (str(a), str(a)),
                (f"{a},000", f"{a}000") if a < 1000 else (f"{a}.50", f"{a}.5"),
                (rf"\dfrac{{{a}}}{{{a + 1}}}", rf"\frac{{{2 * a}}}{{{2 * a + 2}}}"),
                (rf"({a}, \frac{{1}}{{2}})", rf"\left({a},\frac12\right)"),
                (rf"{a} \text{{ cm}}", str(a)),
                (f"x = {a}", str(a)),
                (str(a), str(a + 1)),
                (rf"\frac{{{a}}}{{2}}", rf"\frac{{2}}{{{a}}}"),
                (f"({a}, 1]", f"[{a}, 1]"),
            ][n % 9]
        )
    return pairs


def algebra_pairs(count: int, start: int = 0) -> Pairs:
    """Pairs that only algebra settles, a third of them wrong."""
    pairs = []
    for n in range(start, start + count):
        a = n + 2
        pairs.append(
            [
                (rf"\frac{{x^2-{a * a}}}{{x-{a}}}", f"x+{a}"),
                (rf"\sqrt{{{a * a * 3}}}", rf"{a}\sqrt{{3}}"),
                (rf"\frac{{{a}}}{{\sqrt{{2}}}}", rf"\frac{{{a}\sqrt{{2}}}}{{2}}"),
                (f"(x+{a})^2", f"x^2+{2 * a}x+{a * a}"),
                (rf"{a}\sin 2x", rf"{2 * a}\sin x\cos x"),
                (rf"{a}\log 8", rf"{3 * a}\log 2"),
                (f"(x+{a})^2", f"x^2+{a * a}"),
                (rf"{a}\pi + 1", rf"{a}\pi - 1"),
                (rf"e^{{{a}x}}", rf"e^{{x}}+{a}"),
            ][n % 9]
        )
    return pairs


def rate(verifier: MathVerifier, pairs: Pairs, size: int = 64) -> tuple[float, float]:
    """(pairs graded per second, share that is correct), in batches as training hands them over."""
    started = time.perf_counter()
    right = 0.0
    for at in range(0, len(pairs), size):
        answers, golds = zip(*pairs[at : at + size], strict=True)
        right += sum(grade.score or 0.0 for grade in verifier.grade_answers(answers, golds))
    return len(pairs) / (time.perf_counter() - started), right / len(pairs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the pairs")
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--json", default="", help="write the numbers to this file, too")
    options = parser.parse_args(arguments)
    count = 900 if options.quick else 9000
    verifier = MathVerifier(workers=options.workers)
    started = time.perf_counter()
    verifier.grade_answers(["x+x", "y+y"], ["2x", "2y"])
    print(
        f"start of {options.workers} workers and first pairs: {time.perf_counter() - started:.1f} s"
    )
    mixed = easy_pairs(count // 5 * 4, start=count) + algebra_pairs(count // 5, start=count)
    # Every fifth pair of the mix takes algebra, in each batch.
    mixed = [pair for at in range(count // 5) for pair in mixed[at :: count // 5]]
    numbers = []
    for name, target, pairs in (
        ("easy pairs (strings and numbers)", 1000, easy_pairs(count)),
        ("pairs that need algebra", 1000, algebra_pairs(count // 3)),
        ("mixed pairs (one in five algebra)", 3000, mixed),
    ):
        before = verifier.counts["in workers"]
        speed, right = rate(verifier, pairs)
        inside = verifier.counts["in workers"] - before
        print(f"{name}: {len(pairs)}, {right:.1%} correct, {inside} in workers")
        numbers.append(number(name, [speed], "pairs/s", f">= {target}"))
    print(f"timed out: {verifier.counts['timed out']}")
    tell("grading", vars(options), numbers, options.json)
    verifier.close()


if __name__ == "__main__":
    main()
