"""The doctor, with packages, torch and programs that are there or not."""

import subprocess
import sys
from argparse import Namespace

import pytest

from anytime_lab.run import doctor

HERE = {name: doctor.installed(name) for name in doctor.requirements()}
HERE |= {"ipykernel": "6.31.0", "vllm": "0.31.0", "ray": "2.60.0", "deepspeed": "0.18.1"}


@pytest.fixture
def examine(monkeypatch):
    """The doctor's findings by purpose, of an environment that is made up."""

    def look(missing=(), versions=None, devices=("H100",), trouble=None, programs=("chromium",)):
        present = {**HERE, **(versions or {})}
        facts = {
            "installed": lambda name: None if name in missing else present.get(name),
            "torch_devices": lambda: (trouble, list(devices)),
            "shutil.which": lambda name: name if name in programs else None,
        }
        for name, fact in facts.items():
            monkeypatch.setattr(f"anytime_lab.run.doctor.{name}", fact)
        return {one.purpose: one for one in doctor.examine()}

    return look


def test_a_whole_environment_is_ready_for_everything(examine):
    found = examine()
    assert all(one.ready and not one.fix for one in found.values()), found
    assert doctor.command(Namespace()) == 0
    assert "H100" in found["train"].found


@pytest.mark.parametrize(
    ("name", "purposes"),
    [
        ("trl", {"train"}),
        ("torch", {"train", "evaluate", "vLLM"}),  # without it no device is seen
        ("math-verify", {"evaluate"}),
        ("anywidget", {"show widgets"}),
        ("papermill", {"run notebooks"}),
        ("plotly", {"read results", "show widgets"}),
    ],
)
def test_a_missing_package_is_named_where_it_is_needed(examine, name, purposes):
    found = examine(missing=[name])
    assert {purpose for purpose, one in found.items() if not one.ready} == purposes
    for purpose in purposes:
        if purpose in doctor.NEEDED:
            assert f"no {name}" in found[purpose].found
            assert f'pip install "{name}' in found[purpose].fix
    assert doctor.command(Namespace()) == 1


def test_another_version_is_told_with_the_one_that_is_wanted(examine):
    found = examine(versions={"trl": "1.17.0"})["train"]
    assert not found.ready
    wanted = str(doctor.requirements()["trl"].specifier)
    assert f"trl 1.17.0, not {wanted}" in found.found
    assert found.fix == f'pip install "trl{wanted}"'


@pytest.mark.parametrize(("purpose", "extra"), [("vLLM", "vllm"), ("ray", "ray")])
def test_what_is_at_choice_may_be_missing(examine, purpose, extra, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    found = examine(missing=[extra])
    assert found[purpose].fix == f'pip install -e ".[{extra}]" (in the clone)'
    assert doctor.command(Namespace()) == 0
    assert f'pip install -e ".[{extra}]"' in capsys.readouterr().out


def test_vllm_needs_a_device_and_training_does_not(examine):
    found = examine(devices=())
    assert not found["vLLM"].ready and "no CUDA device" in found["vLLM"].found
    assert found["train"].ready and "on the processor" in found["train"].found


def test_a_broken_torch_is_told_with_its_own_words(examine):
    found = examine(trouble="ImportError: libcudart.so.13: cannot open")
    assert not found["train"].ready and not found["evaluate"].ready
    assert "libcudart.so.13" in found["train"].found
    assert "--force-reinstall" in found["train"].fix
    assert found["read results"].ready


def test_pictures_need_a_browser(examine):
    found = examine(programs=())["save pictures"]
    assert not found.ready and "chromium" in found.fix


def test_every_package_of_a_purpose_has_a_pin_or_comes_with_one():
    asked = doctor.requirements()
    names = {n for group in (*doctor.NEEDED.values(), *doctor.OPTIONAL.values()) for n in group}
    assert names - asked.keys() <= {"ipykernel", "deepspeed"}  # jupyterlab brings the first


@pytest.mark.slow
def test_it_runs_and_finds_this_environment_fit():
    run = subprocess.run(
        [sys.executable, "-m", "anytime_lab", "doctor"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "train" in run.stdout and "vLLM (at choice)" in run.stdout


def test_torch_is_asked_in_a_process_of_its_own(monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('a broken build')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert doctor.torch_devices() == ("ImportError: a broken build", [])
