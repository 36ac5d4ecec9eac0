"""What a notebook says of a folder that it cannot read: a sentence, and still an error."""

from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from made_notebooks import run_notebook
from made_runs import random_right, write_run
from traitlets.config import Config

from anytime_lab.run.process import EXECUTED, RunFailed
from anytime_lab.store.records import part_path

CURVES = Path(__file__).resolve().parents[2] / "notebooks" / "04_budget_curves.ipynb"
READ = "from anytime_lab.store.records import read_records; read_records({!r})"


def torn(folder):
    """An evaluation of which a part is damaged."""
    write_run(folder, random_right(p=3, s=1))
    part_path(folder, "records", 0).write_bytes(b"no")
    return folder


def test_a_cell_that_reads_no_run_ends_with_one_sentence(tmp_path, capsys):
    shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    for folder in (tmp_path / "none", tmp_path, torn(tmp_path / "torn")):
        assert not shell.run_cell(READ.format(str(folder))).success
        said = capsys.readouterr().out.strip()
        assert said.startswith("RunFolderError: ") and len(said.splitlines()) == 1
        assert str(folder) in said and "Traceback" not in said


@pytest.mark.slow
def test_a_run_on_a_damaged_folder_fails_and_says_why(tmp_path):
    runs = {"a": str(torn(tmp_path / "torn"))}
    told = "part-00000.parquet is damaged .* Run the same evaluation again"
    with pytest.raises(RunFailed, match=told):
        run_notebook(CURVES, {"runs": runs, "reference": "a"}, tmp_path / "out")
    executed = nbformat.read(tmp_path / "out" / EXECUTED, as_version=4)
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    (error,) = [output for output in outputs if output.output_type == "error"]
    assert error.traceback == [f"RunFolderError: {error.evalue}"]
