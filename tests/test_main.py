"""The command line: it lists its verbs at once, and says what is wrong in a sentence."""

import subprocess
import sys

import pytest

from anytime_lab.__main__ import VERBS, main

HEAVY = {"torch", "transformers", "pandas", "pyarrow", "plotly", "papermill", "ray", "datasets"}


def test_without_a_verb_it_lists_them(capsys):
    assert main([]) == 0
    told = capsys.readouterr().out
    assert all(name in told and words in told for name, (words, _, _) in VERBS.items())


@pytest.mark.parametrize("verb", VERBS)
def test_help_imports_nothing_heavy(verb):
    code = (
        "import sys\nfrom anytime_lab.__main__ import main\n"
        f"try: main([{verb!r}, '--help'])\nexcept SystemExit: pass\n"
        f"assert not {HEAVY!r} & set(sys.modules), sorted(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0 and "usage: python -m anytime_lab" in run.stdout, run.stderr


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (["sweep", "none.yaml"], "none.yaml"),
        (["sweep", "x.yaml", "--jobs", "0"], "--jobs is 0; expected at least 1."),
        (["serve", "none.ipynb"], "there is no notebook none.ipynb."),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(said, says, capsys):
    assert main(said) == 2
    told = capsys.readouterr().err
    assert says in told and "Traceback" not in told


def test_fresh_removes_what_a_sweep_made_and_nothing_else(tmp_path, capsys):
    out = tmp_path / "lab"
    (out / "train_ar").mkdir(parents=True)
    (out / "mine.txt").write_text("keep")
    said = ["lab", "--fresh", "--scale", "smoke", "--out", str(out)]
    assert main(said) == 2
    assert "holds mine.txt, which this sweep did not make" in capsys.readouterr().err
    assert (out / "train_ar").exists()
