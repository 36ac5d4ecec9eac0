"""Draw the README's figure from what `make lab` made: `python docs/figures.py [runs/lab]`."""

import sys
from pathlib import Path

from anytime_lab.look.figures import plot_accuracy
from anytime_lab.read.curves import accuracy_curves, read_tables
from anytime_lab.run.lab import evaluations

HERE = Path(__file__).resolve().parent
run = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "runs" / "lab"
figure = plot_accuracy(accuracy_curves(read_tables(evaluations(run))))
figure.write_image(HERE / "accuracy.png", width=900, height=460, scale=1.5)
print(f"wrote {HERE / 'accuracy.png'}")
