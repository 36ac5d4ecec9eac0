"""Notebooks that cost next to nothing and sweeps of them, for tests of what runs notebooks."""

from pathlib import Path

import nbformat
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from rich.console import Console

from anytime_lab.run.jobs import Job, run_jobs
from anytime_lab.run.notebook import NOTEBOOKS, check_parameters, code_cells
from anytime_lab.run.places import LocalPlace
from anytime_lab.store.files import read_json


def notebook(folder, *cells, name="n.ipynb", parameters='x: int = 1\nnames: list = ["a"]'):
    """Write a notebook of code cells, the first with the parameters."""
    made = nbformat.v4.new_notebook()
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "p", "language": "python"}
    first = nbformat.v4.new_code_cell(parameters)
    first.metadata["tags"] = ["parameters"]
    made.cells = [first, *(nbformat.v4.new_code_cell(cell) for cell in cells)]
    path = folder / name
    nbformat.write(made, path)
    return path


# Appends its rows one by one and goes on where it was, as the project's own notebooks do.
ROWS = """
import json, os, time
from pathlib import Path
folder = Path(output_dir)
folder.mkdir(parents=True, exist_ok=True)
from anytime_lab.store.files import append_jsonl, read_jsonl, write_json, write_progress
started = time.time()
for row in range(len(read_jsonl(folder / "rows.jsonl")), rows):
    append_jsonl(folder / "rows.jsonl", {"row": row, "seed": seed, "x": x})
    write_progress(folder, "rows", row + 1, rows, "rows", started=started, message=f"x {x}")
    time.sleep(pause)
"""
ROW_PARAMETERS = (
    'output_dir: str = ""\nx: int = 1\nrows: int = 5\npause: float = 0.05\nseed: int = 0'
)


def row_notebook(folder, name="rows.ipynb"):
    """A notebook that writes `rows` rows into `rows.jsonl`."""
    return notebook(folder, ROWS, name=name, parameters=ROW_PARAMETERS)


def with_parameters(name, parameters):
    """One of the project's notebooks with these parameters set."""
    source = NOTEBOOKS / f"{name}.ipynb"
    check_parameters(source, parameters)
    made = parameterize_notebook(load_notebook_node(str(source)), parameters)
    made.metadata.pop("papermill", None)
    return made


def run_cells(name, parameters):
    """Run the cells of one of the project's notebooks in this process; the names they leave."""
    room = {}
    for code, declares in code_cells(NOTEBOOKS / f"{name}.ipynb"):
        exec(code, room)
        room |= parameters if declares else {}
    return room


def run_notebook(path, parameters, folder, console=None):
    """Run a notebook into a folder, unless it holds the result already; its `result.json`."""
    job = Job("run", Path(path), parameters, Path(folder))
    run_jobs([job], LocalPlace(1), console or Console(quiet=True))
    return read_json(job.folder / "result.json")


def sweep_file(folder, text, name="s.yaml"):
    """Write a sweep's file."""
    path = folder / name
    path.write_text(text)
    return path


def chain(folder, more="", steps=""):
    """Write a sweep of two steps of rows, or of `steps`, with `more` before them."""
    row_notebook(folder)
    steps = steps or (
        "  a: {notebook: rows, parameters: {x: '${x}'}}\n"
        "  b: {notebook: rows, parameters: {x: '${x}', rows: 2}}\n"
    )
    return sweep_file(folder, f"{more or 'base: {x: 3}'}\nsteps:\n{steps}")
