"""A picture beside every figure of a notebook: `python -m anytime_lab.pictures NOTEBOOK …`

JupyterLab writes pictures when it saves a notebook; papermill does not, and GitHub and nbconvert
show nothing else of a figure. It needs Chrome or Chromium.
"""

from __future__ import annotations

import argparse
import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anytime_lab.records import write_text

FIGURE, PICTURE = "application/vnd.plotly.v1+json", "image/png"
PIXELS = {"width": 960, "height": 450}
ASK_NOBODY = {"mathjax": False}  # kaleido takes it from a CDN; no figure has formulas


def draw(figure: Mapping[str, Any], kind: str, **pixels: float) -> bytes:
    """A figure as an image of this kind. pixels: width, height and scale, where not its own.

    Raises:
        RuntimeError: no browser could draw it.
    """
    import kaleido  # not before a picture is wanted: views import this module

    layout = figure.get("layout", {})
    own = {side: layout[side] for side in ("width", "height") if layout.get(side)}
    try:
        return kaleido.calc_fig_sync(
            dict(figure), opts={"format": kind, **PIXELS, **own, **pixels}, kopts=ASK_NOBODY
        )
    except Exception as error:  # kaleido tells a missing browser in several ways
        raise RuntimeError(
            f"no {kind} was written: {(str(error).splitlines() or [type(error).__name__])[0]}. "
            "Images need kaleido and Chrome or Chromium; HTML needs neither."
        ) from error


def add_pictures(path: str | Path) -> int:
    """Puts pictures into the notebook at `path`, in one step; returns how many were missing.

    Raises:
        RuntimeError: no browser could draw them; the notebook is as it was.
    """
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    bare = [
        output.data
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if FIGURE in output.get("data", {}) and PICTURE not in output.data
    ]
    for data in bare:
        data[PICTURE] = base64.b64encode(draw(data[FIGURE], "png")).decode()
    if bare:
        write_text(path, nbformat.writes(notebook))
    return len(bare)


def main(arguments: Sequence[str] | None = None) -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description="Put pictures of figures into notebooks.")
    parser.add_argument("notebook", nargs="+", type=Path)
    for path in parser.parse_args(arguments).notebook:
        print(f"{path}: {add_pictures(path)} pictures added")


if __name__ == "__main__":
    main()
