"""How voila is told to serve a notebook; tests/look/test_browser_voila.py looks at the page."""

import json
import os
import sys
import tomllib
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest

from anytime_lab.run.serve import JUPYTER, TEMPLATE, arguments_for_voila, command

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


@pytest.mark.parametrize(("before", "others"), [("/mine", ["/mine"]), ("", []), (None, [])])
def test_voila_finds_the_template_first_and_others_still(monkeypatch, tmp_path, before, others):
    told = []

    class Voila:
        def launch_instance(arguments):
            told.append((arguments, {**os.environ}))

    monkeypatch.setattr(os, "environ", {"HOME": "/home"})
    if before is not None:
        os.environ["JUPYTER_PATH"] = before
    monkeypatch.setitem(sys.modules, "voila", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "voila.app", SimpleNamespace(Voila=Voila))
    (tmp_path / "n.ipynb").touch()
    assert command(Namespace(notebook=str(tmp_path / "n.ipynb"), options=["--port=1"])) == 0
    ((arguments, environment),) = told
    assert arguments == arguments_for_voila(str(tmp_path / "n.ipynb"), ["--port=1"])
    assert environment["JUPYTER_PATH"].split(os.pathsep) == [str(JUPYTER), *others]
    assert environment["PLOTLY_RENDERER"] == "notebook" and environment["HOME"] == "/home"


def test_without_voila_the_fix_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "voila.app", None)
    (tmp_path / "n.ipynb").touch()
    with pytest.raises(ValueError, match="install it with: pip install voila"):
        command(Namespace(notebook=str(tmp_path / "n.ipynb"), options=[]))


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
