"""Run notebooks and keep them with pictures: `python docs/executed.py [NOTEBOOK …]`.

04, 06 and 11 show what ships; 08 and 09 the trainings of seed 0 of experiments/claims.yaml, which
lie in runs/claims once that sweep has run. What GitHub shows of a view is its picture; the figure
itself, which is large, is left out. It needs Chromium or Chrome.
"""

import sys
import tempfile
from pathlib import Path

import nbformat

from anytime_lab.look.pictures import FIGURE, PICTURE
from anytime_lab.run.notebook import NOTEBOOKS
from anytime_lab.run.process import EXECUTED, Job, run_to_end

OUT = Path(__file__).resolve().parent / "notebooks"
EXAMPLE = "experiments/example/evaluate_"
START, GRPO, AR = (
    {name: EXAMPLE + folder}
    for name, folder in (("start", "start"), ("GRPO", "grpo"), ("AnytimeReasoner", "ar"))
)
TRAINED = {
    "AnytimeReasoner": "runs/claims/AR-uniform/seed-0/train",
    "GRPO": "runs/claims/GRPO/seed-0/train",
}
# Notebook → its parameters
SHOWN = {
    "04_budget_curves": {"runs": START | GRPO | AR},
    "06_inside_a_problem": {"runs": AR | GRPO},
    "08_credit": {"runs": TRAINED},
    "09_training": {"runs": TRAINED},
    "11_claims": {},
}
LARGEST = 300_000  # bytes of one


def cleaned(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without what papermill notes and what only a running JupyterLab can draw."""
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        for noted in ("papermill", "execution"):
            cell.metadata.pop(noted, None)
        for output in cell.get("outputs", ()):
            if PICTURE in output.get("data", {}):
                output.data.pop(FIGURE, None)
    return notebook


def main() -> None:
    """Write each notebook; a page without a picture, or one that is too large, is an error."""
    OUT.mkdir(exist_ok=True)
    for name in sys.argv[1:] or SHOWN:
        parameters = SHOWN[name]
        with tempfile.TemporaryDirectory() as room:
            job = Job(name, NOTEBOOKS / f"{name}.ipynb", parameters, Path(room) / name)
            run_to_end(job)
            notebook = cleaned(nbformat.read(job.folder / EXECUTED, as_version=4))
        path = OUT / f"{name}.ipynb"
        nbformat.write(notebook, path)
        size = path.stat().st_size
        if PICTURE not in path.read_text(encoding="utf-8") or size > LARGEST:
            sys.exit(f"{path}: {size:,} bytes; expected a picture and {LARGEST:,} at most.")
        print(f"{path}: {size:,} bytes")


if __name__ == "__main__":
    main()
