"""All benchmarks, and one picture of their ratios: `python benchmarks/all.py [--quick]`.

Each script checks its own correctness first and prints its numbers; JSON of each and a plot of what
has an aim go to benchmarks/results. `--quick` takes ten minutes on two quiet cores: sizes are
smaller, and the largest left out.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Name of the result → script and arguments; those of --quick, where it is part of that, and what
# the whole run takes instead.
RUNS: dict[str, tuple[str, str | None, str]] = {
    "update": ("trees", "--rounds 1 --trees 2 --backends segmented", "--rounds 5"),
    "update-2048": (
        "trees",
        None,
        "--rounds 3 --trees 2 --thinking 2048 --backends segmented unrolled",
    ),
    "update-2048-100": (
        "trees",
        "--rounds 1 --trees 1 --summary 100 --backends segmented",
        "--rounds 1 --trees 1 --summary 100 --thinking 2048 --backends segmented unrolled",
    ),
    "growth": (
        "trees",
        "--rounds 1 --trees 1 --thinking 256 --growth --backends segmented",
        "--rounds 1 --growth --backends segmented unrolled",
    ),
    "growth-8192": (
        "trees",
        None,
        "--rounds 1 --trees 1 --thinking 2048 --growth --backends segmented",
    ),
    "iteration-96": (
        "iteration",
        "--thinking 96 --rounds 2 --updates 3 --vocab 256",
        "--thinking 96 --rounds 5 --updates 8 --vocab 256",
    ),
    "iteration-1024": (
        "iteration", "--rounds 1 --updates 1 --group 4", "--rounds 3 --updates 3 --group 4"
    ),
    "iteration-2048": (
        "iteration",
        None,
        "--thinking 2048 --rounds 3 --updates 1 --group 4",
    ),
    "curves": (
        "sampling",
        "--parts curves --rounds 1 --thinking 512 --rows 2",
        "--parts curves --rounds 5 --thinking 2048 --prompt 200 --rows 4",
    ),
    "tokens": (
        "sampling",
        "--parts growth --rounds 1 --thinking 256 --rows 2",
        "--parts growth --rounds 1 --thinking 2048 --rows 4",
    ),
    "sampling": (
        "sampling",
        "--parts runs generate --rounds 1 --thinking 128 --rows 4",
        "--parts runs generate --rounds 1 --thinking 2048 --prompt 200 --rows 4",
    ),
    "engines": ("engines", "hf --rounds 2 --problems 16", "hf"),
    "coverage": ("coverage", "--trials 1000", ""),
    "grading": ("grading", "--quick", ""),
    "views": ("views", "--problems 200 --samples 4", ""),
}  # fmt: skip


def draw(folder: Path) -> None:
    """How far each number with an aim is from it, 1 being the aim, with its quartiles."""
    import plotly.graph_objects as go

    from anytime_lab.look.pictures import few_colours

    shown = []
    for path in sorted(folder.glob("*.json")):
        told = json.loads(path.read_text())
        for one in told["numbers"]:
            if one["target"]:
                sign, aim = one["target"].split()
                better = [one[key] / float(aim) for key in ("low", "median", "high")]
                better = better if sign == ">=" else [1 / max(b, 1e-9) for b in reversed(better)]
                shown.append((f"{path.stem}: {one['name']}", *better))
    shown = shown[::-1]
    names, low, middle, high = zip(*shown, strict=True)
    error = {
        "type": "data",
        "symmetric": False,
        "array": [h - m for h, m in zip(high, middle, strict=True)],
        "arrayminus": [m - lo for lo, m in zip(low, middle, strict=True)],
    }
    colours = ["#0072B2" if value >= 1 else "#D55E00" for value in middle]
    dots = go.Scatter(
        x=middle,
        y=[*range(len(names))],
        error_x=error,
        mode="markers",
        marker={"color": colours, "size": 9},
    )
    rows = [-0.6, len(names) - 0.4]
    aim = go.Scatter(x=[1, 1], y=rows, mode="lines", line={"dash": "dot", "color": "#555"})
    figure = go.Figure([dots, aim])
    figure.update_xaxes(type="log", dtick=1, title="times the aim (right of 1: reached)")
    figure.update_yaxes(range=rows, automargin=True, tickvals=[*range(len(names))], ticktext=names)
    figure.update_layout(
        template="simple_white", width=1000, height=80 + 22 * len(names), showlegend=False,
        margin={"t": 16, "b": 56, "r": 16},
    )  # fmt: skip
    figure.write_html(folder / "aims.html", include_plotlyjs="cdn")
    try:
        (folder / "aims.png").write_bytes(few_colours(figure.to_image("png")))
    except Exception as error:  # kaleido finds no browser
        print(f"no aims.png ({error}); aims.html holds the plot")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: ten minutes")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    options = parser.parse_args()
    failed = []
    for name in options.only:
        script, quick, whole = RUNS[name]
        if (chosen := quick if options.quick else whole) is None:
            print(f"== {name}: not part of --quick\n", flush=True)
            continue
        arguments = chosen.split()
        print(f"== {name}: python benchmarks/{script}.py {' '.join(arguments)}", flush=True)
        start = time.perf_counter()
        command = [sys.executable, str(HERE / f"{script}.py"), *arguments]
        status = subprocess.run([*command, "--json", str(options.out / f"{name}.json")]).returncode
        failed += [name] if status else []
        print(f"== {name}: {time.perf_counter() - start:.0f} s\n", flush=True)
    draw(options.out)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the lines above say why.")


if __name__ == "__main__":
    main()
