"""How voila is told to serve a notebook; tests/test_browser_voila.py looks at the page."""

import json
import os
import tomllib
from pathlib import Path

from anytime_lab.run.serve import JUPYTER, TEMPLATE, prepare

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
