"""How voila is told to serve a notebook; tests/look/test_browser_voila.py looks at the page."""

import json
import os
import tomllib
from pathlib import Path

import pytest

from anytime_lab.run.serve import JUPYTER, TEMPLATE, arguments_for_voila, prepare

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def test_voila_finds_the_template_first_and_others_still():
    environment = {"JUPYTER_PATH": "/mine", "HOME": "/home"}
    prepare(environment)
    assert environment["JUPYTER_PATH"].split(os.pathsep) == [str(JUPYTER), "/mine"]
    assert environment["PLOTLY_RENDERER"] == "notebook" and environment["HOME"] == "/home"
    prepare(bare := {})
    assert bare["JUPYTER_PATH"] == str(JUPYTER)


def test_the_template_is_shipped_and_builds_on_that_of_voila():
    folder = JUPYTER / "voila" / "templates" / TEMPLATE
    assert json.loads((folder / "conf.json").read_text()) == {"base_template": "lab"}
    assert (folder / "index.html.j2").is_file()
    shipped = tomllib.loads(PROJECT.read_text())["tool"]["setuptools"]["package-data"]
    assert f"jupyter/voila/templates/{TEMPLATE}/*" in shipped["anytime_lab"]


def test_only_this_machine_is_answered_and_by_token_only():
    told = arguments_for_voila("n.ipynb", ["--port=8899"])
    assert told[:2] == ["n.ipynb", "--port=8899"]
    assert {"--Voila.ip=127.0.0.1", "--Voila.auto_token=True"} <= set(told)
    assert "--Voila.auto_token=True" not in arguments_for_voila("n.ipynb", ["--token=mine"])


@pytest.mark.parametrize("option", ["--Voila.ip=0.0.0.0", "--ip=0.0.0.0", "--token="])
def test_other_machines_are_not_let_in(option):
    with pytest.raises(ValueError, match="forward the port: ssh -L 8866:localhost:8866"):
        arguments_for_voila("n.ipynb", [option])
