"""Draw the README's figures: `python docs/figures.py [runs/lab]`, all, or those that need no run.

Those of the study and of SmolLM2 are drawn from what ships; accuracy.png is of a main job.
"""

import json
import sys
from pathlib import Path

import pandas as pd

from anytime_lab.look.figures import plot_claims, plot_course, plot_curves
from anytime_lab.read.claims import claim_frame, open_study, today_panels
from anytime_lab.read.curves import accuracy_curves, read_tables

HERE = Path(__file__).resolve().parent
FOLDERS = {"start": "start", "GRPO": "grpo", "AnytimeReasoner-uniform": "ar"}
SMOLLM2 = HERE.parent / "benchmarks" / "results" / "smollm2-trained-cpu.json"


def smollm2() -> pd.DataFrame:
    """The curves that benchmarks/smollm2.py told, as plot_curves takes them."""
    rows = []
    for number in json.loads(SMOLLM2.read_text())["numbers"]:
        run, _, at = number["name"].partition(" at ")
        if at:
            told = {"accuracy": number["median"], "low": number["low"], "high": number["high"]}
            rows.append({"run": f"{run} training", "budget": int(at.split()[0]), **told})
    return pd.DataFrame(rows)


def write(name: str, figure, **pixels: float) -> None:
    """Writes one of them beside this file."""
    figure.write_image(HERE / f"{name}.png", width=900, scale=1.5, **pixels)
    print(f"wrote {HERE / name}.png")


study = open_study(HERE.parent / "experiments" / "claims")
claims = claim_frame(study)
write("claims", plot_claims(claims[claims["part"].isin([*"abcdeg"])]))
write("today", plot_course(today_panels(study), "Accuracy"))
write("smollm2", plot_curves(smollm2(), title="SmolLM2-135M on sums of three digits"), height=380)
run = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "runs" / "lab"
runs = {name: run / f"evaluate_{folder}" for name, folder in FOLDERS.items()}
if run.exists() or len(sys.argv) > 1:
    write("accuracy", plot_curves(accuracy_curves(read_tables(runs))), height=460)
else:
    print(f"accuracy.png stays: no main job in {run}; run `make lab`, or name its folder.")
