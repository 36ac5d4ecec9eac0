"""Pictures in executed notebooks: for whoever shows them without plotly."""

import base64
import io
import json
import re

import nbformat
import numpy as np
import plotly.graph_objects as go
import pytest
from lab_browser import find_browser
from nbconvert import HTMLExporter
from PIL import Image

from anytime_lab.look.pictures import FIGURE, PICTURE, VIEW, add_pictures, few_colours

browser = pytest.mark.skipif(find_browser() is None, reason="no browser to draw with")


def executed(folder):
    """A notebook with a figure and a text among its outputs, as papermill leaves it."""
    figure = go.Figure(go.Scatter(y=[1, 2]), layout={"height": 300})
    data = {FIGURE: json.loads(figure.to_json())}
    cell = nbformat.v4.new_code_cell("show()")
    cell.outputs = [
        nbformat.v4.new_output("display_data", data),
        nbformat.v4.new_output("stream", text="told"),
        nbformat.v4.new_output("execute_result", {"text/plain": "1"}),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / "n.ipynb")
    return folder / "n.ipynb"


def page(path):
    """The pictures on the page that nbconvert makes of a notebook."""
    html = HTMLExporter().from_filename(str(path))[0]
    return re.findall(r'<img[^>]*src="data:image/png;base64,([^"]*)"', html)


@browser
def test_a_figure_gets_its_picture_once_and_nbconvert_shows_it(tmp_path):
    path = executed(tmp_path)
    assert page(path) == []
    assert add_pictures(path) == 1
    data = nbformat.read(path, as_version=4).cells[0].outputs[0].data
    png = base64.b64decode(data[PICTURE])
    assert png.startswith(b"\x89PNG") and FIGURE in data
    assert (int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")) == (960, 300)
    (shown,) = page(path)
    assert shown == data[PICTURE].strip()
    written = path.read_bytes()
    assert add_pictures(path) == 0 and path.read_bytes() == written


@browser
def test_a_view_whose_kernel_is_gone_leaves_its_picture(tmp_path):
    path = executed(tmp_path)
    notebook = nbformat.read(path, as_version=4)
    view = nbformat.v4.new_output("display_data", {VIEW: {"model_id": "1"}, "text/plain": "View"})
    notebook.cells[0].outputs.insert(1, view)
    notebook.metadata["widgets"] = {"state": {"1": {"value": "x" * 1_000_000}}}
    nbformat.write(notebook, path)
    assert add_pictures(path) == 1
    assert path.stat().st_size < 100_000 and VIEW not in path.read_text()
    assert len(nbformat.read(path, as_version=4).cells[0].outputs) == 3


def test_a_picture_of_few_colours_is_near_the_whole_one_and_smaller():
    # Bands of seven colours over each other on white, edges smoothed: some thousand colours.
    across, down = np.mgrid[0:300, 0:400][::-1] / 40.0
    layers = [np.clip(np.sin(across + k) + down - k, 0, 1)[..., None] for k in range(7)]
    colours = np.random.default_rng(0).integers(0, 255, (7, 3))
    whole = 255 - sum(layer * (255 - c) / 7 for layer, c in zip(layers, colours, strict=True))
    file = io.BytesIO()
    Image.fromarray(whole.astype("uint8"), "RGB").convert("RGBA").save(file, "PNG")
    small = few_colours(file.getvalue())
    with Image.open(io.BytesIO(small)) as image:
        apart = np.abs(np.asarray(image.convert("RGB"), float) - whole)
    assert len(small) < len(file.getvalue()) / 2
    assert apart.mean() < 3 and apart.max() < 32


def test_what_cannot_be_drawn_is_told_in_a_sentence(tmp_path, monkeypatch):
    path = executed(tmp_path)
    before = path.read_bytes()
    monkeypatch.setenv("BROWSER_PATH", "/nowhere")
    with pytest.raises(RuntimeError, match="no browser was found at BROWSER_PATH='/nowhere'"):
        add_pictures(path)
    assert path.read_bytes() == before
