"""Live figures: what a page is sent when it opens, and how little while it is open."""

import json

import ipywidgets
import plotly.graph_objects as go
import pytest
from made_runs import random_right, write_run

from anytime_lab.look.curves_view import BudgetCurves
from anytime_lab.look.live import LiveFigure

STOPS = [(8, "8 tokens"), (16, "16 tokens"), (24, "24 tokens")]


def figure(y=(1, 2), **layout):
    return go.Figure({"data": [{"y": list(y)}], "layout": {"height": 300, **layout}})


def shown(stops=()):
    live = LiveFigure()
    live.update_from(figure(), stops=stops)
    return live


def told(live):
    return json.loads(live._figure)


@pytest.fixture
def sent(monkeypatch):
    """Sizes of the messages to the page, in characters."""
    sizes = []
    monkeypatch.setattr(
        ipywidgets.Widget,
        "_send",
        lambda self, message, buffers=None: sizes.append(
            len(json.dumps(message, default=str)) + sum(len(bytes(b)) for b in buffers or ())
        ),
    )
    return sizes


def test_the_line_stays_at_its_budget_where_that_is_left():
    live = shown(STOPS)
    assert live.stop == 16  # the middle one
    live.at = 2
    live.update_from(figure(), stops=STOPS[1:])
    assert (live.at, live.stop) == (1, 24)
    live.update_from(figure(), stops=STOPS[:1])
    assert live.stop == 8
    live.update_from(figure(), stops=[])
    assert live.stop is None


def test_the_page_tells_clicks_and_bars_and_nothing_else():
    live, heard = shown(), []
    live.hear("click", heard.append)
    live.hear("painted", heard.append)
    for message in ({"click": ["ar", 24, 0.5]}, {"painted": [0.1, 0.2]}, "odd", {"click": 3}, None):
        live._handle_custom_msg(message, [])
    assert heard == [["ar", 24, 0.5], [0.1, 0.2]]


def test_plotly_is_sent_once_for_all_figures():
    one, two = shown(), shown()
    assert one._source == two._source
    assert len(json.dumps(one.get_state(), default=str)) < 30_000


def test_a_step_of_the_line_sends_no_figure(tmp_path, sent):
    runs = {}
    for seed in range(6):
        runs[f"r{seed}"] = tmp_path / f"r{seed}"
        write_run(runs[f"r{seed}"], random_right(p=4, s=1, seed=seed))
    view = BudgetCurves(runs)
    whole = len(view.live._figure)
    sent.clear()
    view.live.at = 0
    assert 0 < sum(sent) < whole / 2  # the numbers of the list
