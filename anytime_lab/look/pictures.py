"""A picture beside every figure of a notebook: `python -m anytime_lab pictures NOTEBOOK …`

JupyterLab writes pictures when it saves a notebook; papermill does not, and GitHub and nbconvert
show nothing else of a figure. Sweeps and the main job add them by themselves where they find
Chrome or Chromium, which this needs.
"""

import asyncio
import base64
import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from anytime_lab.store.files import write_text

FIGURE, PICTURE = "application/vnd.plotly.v1+json", "image/png"
VIEW = "application/vnd.jupyter.widget-view+json"
PIXELS = {"width": 960, "height": 450}
ASK_NOBODY = {"mathjax": False}  # kaleido takes it from a CDN; no figure has formulas


def draw(figures: Sequence[Mapping[str, Any]], kind: str, **pixels: float) -> list[bytes]:
    """Figures as images of this kind, by one browser.

    Args:
        pixels: width, height and scale, where not the figure's own.

    Raises:
        RuntimeError: no browser could draw them.
    """
    # Not before a picture is wanted: views import this module.
    import kaleido
    from choreographer.browsers.chromium import Chromium

    browser = Chromium.find_browser(skip_local=False)
    if not browser or not os.access(browser, os.X_OK):  # kaleido would leave threads behind
        named = os.environ.get("BROWSER_PATH")
        place = f" at BROWSER_PATH={named!r}" if named else ""
        raise RuntimeError(
            f"no {kind} was written: no browser was found{place}. Images need Chrome or Chromium; "
            "HTML does not."
        )

    async def drawn() -> list[bytes]:
        async with kaleido.Kaleido(n=1, **ASK_NOBODY) as browser:
            return [await browser.calc_fig(dict(f), options(f.get("layout", {}))) for f in figures]

    def options(layout: Mapping[str, Any]) -> dict[str, Any]:
        own = {side: layout[side] for side in PIXELS if layout.get(side)}
        return {"format": kind, **PIXELS, **own, **pixels}

    try:
        with ThreadPoolExecutor(1) as apart:  # a notebook's own thread has an event loop already
            return apart.submit(asyncio.run, drawn()).result()
    except Exception as error:  # kaleido tells a browser that fails in several ways
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise RuntimeError(f"no {kind} was written: {reason}. HTML needs no browser.") from error


def few_colours(png: bytes) -> bytes:
    """A figure's PNG with the 256 colours that serve it best: a fourth of its bytes."""
    from PIL import Image

    small = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").quantize(dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def add_pictures(path: str | Path) -> int:
    """Puts pictures into the notebook at `path`, in one step; returns how many were missing.

    Views whose kernel is gone are taken out where their picture stands before them: a page could
    say of them only that they are lost, and they hold plotly, which is large.

    Raises:
        RuntimeError: no browser could draw them; the notebook is as it was.
    """
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    bare, lost = [], notebook.metadata.pop("widgets", None) is not None
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        figures = [output.data for output in outputs if FIGURE in output.get("data", {})]
        bare += [data for data in figures if PICTURE not in data]
        if figures:
            cell.outputs = [o for o in outputs if VIEW not in o.get("data", {})]
            lost |= len(cell.outputs) < len(outputs)
    if bare:
        for data, png in zip(bare, draw([data[FIGURE] for data in bare], "png"), strict=True):
            data[PICTURE] = base64.b64encode(few_colours(png)).decode()
    if bare or lost:
        write_text(path, nbformat.writes(notebook))
    return len(bare)
