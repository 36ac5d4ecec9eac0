"""Badges that open notebooks in Colab: `python docs/colab.py OWNER/NAME`.

Each notebook that needs nothing but what ships gets a badge under its title and a first cell that
fetches and installs the project, there only. A second call changes the address.
"""

import re
import sys
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
# What runs without a training before it; the others read what `make lab` leaves.
ALONE = ("01_warm_start", "02_train", "03_evaluate", "04_budget_curves", "06_inside_a_problem")
ALONE += ("10_answer_now", "11_claims")
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{address}/blob/main/notebooks/{name}.ipynb)"
)
SET_UP = """import sys

if "google.colab" in sys.modules:
    from google.colab import output

    output.enable_custom_widget_manager()
    !git clone --quiet --depth 1 https://github.com/{address}
    %cd {folder}
    %pip install --quiet --editable ."""
TAG = "colab"  # of the cell that sets up


def with_badge(notebook: nbformat.NotebookNode, name: str, address: str) -> nbformat.NotebookNode:
    """The notebook with badge and first cell for a repository; what was there of them is replaced.

    Args:
        name: of the notebook's file, without its ending.
        address: OWNER/NAME on GitHub.
    """
    cells = [c for c in notebook.cells if TAG not in c.metadata.get("tags", ())]
    title, *text = cells[0].source.split("\n")
    text = "\n".join(text).lstrip("\n")
    text = text.partition("\n\n")[2] if text.startswith("[![Open in Colab]") else text
    cells[0].source = "\n\n".join([title, BADGE.format(address=address, name=name), text])
    source = SET_UP.format(address=address, folder=address.split("/")[1])
    cells.insert(1, nbformat.v4.new_code_cell(source, id=TAG, metadata={"tags": [TAG]}))
    notebook.cells = cells
    return notebook


def main() -> None:
    """Write the badges of the address that is given."""
    given = sys.argv[1] if len(sys.argv) == 2 else ""
    if not re.fullmatch(r"[\w-]+/[\w.-]+", given):
        sys.exit(f"The address is {given!r}; expected OWNER/NAME of the project on GitHub.")
    for name in ALONE:
        path = NOTEBOOKS / f"{name}.ipynb"
        nbformat.write(with_badge(nbformat.read(path, as_version=4), name, given), path)
        print(f"{path}: badge for {given}")


if __name__ == "__main__":
    main()
