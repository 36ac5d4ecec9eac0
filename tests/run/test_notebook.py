"""A notebook's parameters: what is refused before work, read from text, and kept secret."""

import json
from pathlib import Path

import pytest
from made_notebooks import notebook
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from anytime_lab.run.notebook import (
    NOTEBOOKS,
    ROOT,
    SECRETS,
    check_parameters,
    code_cells,
    declared_parameters,
    hide_secrets,
    take_parameters,
)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"y": 1}, "no parameter 'y'; there are x, names"),
        ({"x": "1"}, "x is '1' .str.; expected int, such as 1"),
        ({"x": True}, "expected int"),
        ({"x": 1.5}, "expected int"),
        ({"names": ("a",)}, "JSON cannot hold"),
        ({"names": Path("a")}, "JSON cannot hold"),
        ({"x": float("nan")}, "JSON cannot hold"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(tmp_path, parameters, says):
    path = notebook(tmp_path, "pass")
    with pytest.raises(ValueError, match=says):
        check_parameters(path, parameters)


DECLARED = """
output_dir: str = "runs/train"
budgets: list = [24, 48]
settings: dict = {}
rate: float = 1.0
steps: int = 60
follow: bool = True
"""


def room(injected="", **environment):
    """The globals of a notebook whose first cells have run."""
    found = {"In": ["", DECLARED, *filter(None, [injected])]}
    for cell in found["In"]:
        exec(cell, found)
    return found


@pytest.fixture
def in_project(monkeypatch):
    monkeypatch.chdir(NOTEBOOKS)


def test_an_unknown_injected_parameter_is_refused_with_the_nearest_name(in_project):
    with pytest.raises(ValueError, match="no parameter 'max_step'; do you mean steps"):
        take_parameters(room("# Parameters\nmax_step = 3\n"))
    with pytest.raises(ValueError, match="no parameter 'budget'; do you mean budgets"):
        take_parameters(room("# Parameters\nbudget = [3]\n"))


def test_text_is_read_as_what_is_declared(in_project):
    given = room(
        "# Parameters\nbudgets = '[8, 16]'\nsettings = '{\"high\": 12}'\nrate = '1e-6'\n"
        "follow = 'false'\nsteps = '5'\n"
    )
    take_parameters(given)
    told = [given[name] for name in ("budgets", "settings", "rate", "follow", "steps")]
    assert told == [[8, 16], {"high": 12}, 1e-6, False, 5]
    given = room("# Parameters\nsettings = \"{'high': None}\"\n")
    take_parameters(given)
    assert given["settings"] == {"high": None}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            "budgets = '24, x'",
            "budgets is '24, x' .str.; expected list, .*Write a list in",
        ),
        ("settings = 'high=12'", "expected dict, .*names with values in braces"),
        ("steps = 1.5", "expected int"),
        ("steps = True", "expected int"),
    ],
)
def test_a_value_of_another_type_is_refused_before_work(in_project, given, says):
    with pytest.raises(ValueError, match=says):
        take_parameters(room(f"# Parameters\n{given}\n"))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("steps", 2.5, r"steps is 2.5 \(float\); expected int, such as 60\."),
        ("budgets", 96, r"budgets is 96 \(int\); expected list, such as \[24, 48\]\."),
    ],
)
def test_the_example_is_the_notebooks_own_default(in_project, tmp_path, name, value, says):
    path = notebook(tmp_path, "pass", parameters=DECLARED.strip())
    injected = parameterize_notebook(load_notebook_node(str(path)), {name: value})
    given = {"In": ["", *(cell.source for cell in injected.cells)]}
    for cell in given["In"]:
        exec(cell, given)
    with pytest.raises(ValueError, match=says):
        take_parameters(given)


def test_relative_folders_are_from_the_project_and_a_tilde_is_home(in_project, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    given = room("# Parameters\noutput_dir = '~/run'\n")
    take_parameters(given)
    assert given["output_dir"] == "/home/somebody/run"
    assert Path.cwd() == ROOT


def test_outside_of_the_project_one_stays_where_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    take_parameters(room())
    assert Path.cwd() == tmp_path


SECRET = {"engine": "http://me:hunter2@host/v1", "options": {"api_key": "k3y", "max_tokens": 3}}


def test_secrets_are_hidden_from_files_and_come_back_from_the_environment(in_project, monkeypatch):
    shown, kept = hide_secrets(SECRET)
    assert "hunter2" not in str(shown) and "k3y" not in str(shown)
    assert shown["options"]["max_tokens"] == 3 and shown["engine"].endswith("@host/v1")
    monkeypatch.setenv(SECRETS, json.dumps(kept))
    cells = "engine: str = ''\noptions: dict = {}"
    given = {
        "In": [cells, f"# Parameters\nengine = {shown['engine']!r}\noptions = {shown['options']}"]
    }
    for cell in given["In"]:
        exec(cell, given)
    take_parameters(given)
    assert {name: given[name] for name in SECRET} == SECRET


def test_a_secret_that_papermill_has_written_down_is_refused(in_project, monkeypatch):
    with pytest.raises(ValueError, match="settings holds a secret, and papermill .* give env:NAME"):
        take_parameters(room("# Parameters\nsettings = {'api_key': 'k3y'}\n"))
    given = room("# Parameters\nsettings = {'api_key': 'env:MY_KEY'}\n")
    with pytest.raises(ValueError, match="env:MY_KEY: the environment has no variable MY_KEY"):
        take_parameters(given)
    monkeypatch.setenv("MY_KEY", "k3y")
    take_parameters(given)
    assert given["settings"] == {"api_key": "k3y"}


def test_a_notebook_that_would_not_take_secrets_is_refused_them(tmp_path):
    path = notebook(tmp_path, "pass", parameters="key: dict = {}")
    with pytest.raises(ValueError, match="does not call take_parameters"):
        check_parameters(path, {"key": {"api_key": "k3y"}})


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_every_notebook_takes_its_parameters_in_its_second_cell(path):
    second = code_cells(path)[1][0]
    assert "take_parameters(globals())" in second
    told = [value for value in declared_parameters(path).values() if isinstance(value, str)]
    assert not any(value.startswith("../") for value in told)
