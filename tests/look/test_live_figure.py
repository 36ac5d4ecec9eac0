"""Live figures: what a page is sent before it has drawn, while it is open, when it opens again."""

import json

import ipywidgets
import pytest
from made_runs import random_right, write_run

from anytime_lab.look.curves_view import BudgetCurves
from anytime_lab.look.live import live_figure


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


def test_before_a_page_has_drawn_every_edit_sends_the_whole_and_then_none():
    figure = live_figure([{}], 300)
    figure.data[0].x = [1, 2]
    assert figure._widget_data[0]["x"] == [1, 2]
    figure._drawn = True  # told by the page
    figure.data[0].x = [1, 2, 3]
    assert figure._widget_data[0]["x"] == [1, 2]


def test_a_page_that_opens_again_gets_the_figure_as_it_is():
    figure = live_figure([{}], 300)
    figure._drawn = True
    figure.data[0].y = [4.0]
    figure.update_xaxes(title="tokens")
    state = figure.get_state()
    assert state["_widget_data"][0]["y"] == [4.0]
    assert state["_widget_layout"]["xaxis"]["title"]["text"] == "tokens"


def test_plotly_is_sent_once_for_all_figures():
    one, two = live_figure([{}], 300), live_figure([{}], 300)
    assert one._source == two._source
    assert len(json.dumps(one.get_state(), default=str)) < 20_000


def test_a_step_of_the_slider_sends_no_figure(tmp_path, sent):
    runs = {}
    for seed in range(6):
        runs[f"r{seed}"] = tmp_path / f"r{seed}"
        write_run(runs[f"r{seed}"], random_right(p=4, s=1, seed=seed))
    view = BudgetCurves(runs)
    figures = view.curves.live, view.prior.panel
    whole = len(json.dumps(view.curves.live.get_state(), default=str))
    for figure in figures:
        figure._drawn = True
    sent.clear()
    view.budget.value = view.budget.options[0][1]
    assert 0 < sum(sent) < whole / 2  # the table of the read-out, and a line that moved
