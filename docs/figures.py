"""Draw the README's figures of a main job and of the study: `python docs/figures.py [runs/lab]`."""

import sys
from pathlib import Path

from anytime_lab.look.claims_figures import plot_claims, plot_course
from anytime_lab.look.figures import plot_curves
from anytime_lab.read.claims import claim_frame, read_study, today_panels
from anytime_lab.read.curves import accuracy_curves, read_tables

HERE = Path(__file__).resolve().parent
FOLDERS = {"start": "start", "GRPO": "grpo", "AnytimeReasoner-uniform": "ar"}
study = read_study(HERE.parent / "experiments" / "claims")
claims = claim_frame(study)
for name, figure in (
    ("claims", plot_claims(claims[claims["part"].isin([*"abcdeg"])])),
    ("today", plot_course(today_panels(study), "Accuracy")),
):
    figure.write_image(HERE / f"{name}.png", width=900, scale=1.5)
    print(f"wrote {HERE / name}.png")
run = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "runs" / "lab"
runs = {name: run / f"evaluate_{folder}" for name, folder in FOLDERS.items()}
figure = plot_curves(accuracy_curves(read_tables(runs)))
figure.write_image(HERE / "accuracy.png", width=900, height=460, scale=1.5)
print(f"wrote {HERE / 'accuracy.png'}")
