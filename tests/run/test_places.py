"""Where runs go: what this machine shares out, what is refused, and which places there are."""

import pytest
from made_notebooks import row_notebook

from anytime_lab.run.places import PLACES, LocalPlace, open_place, threads_of
from anytime_lab.run.process import Needs
from anytime_lab.run.sweep import prepare_sweep, run_sweep


def shares(devices, workers, *wanted):
    """What runs that start one after another get, None where one has to wait."""
    here = LocalPlace(workers, devices=devices)
    got = []
    for gpus in wanted:
        taken = [share for share in got if share is not None]
        got.append(here.share(Needs(gpus=gpus), taken))
    return got


@pytest.mark.parametrize(
    ("devices", "workers", "wanted", "got"),
    [
        ("", 2, [None, None, None], [{}, {}, None]),
        ("01", 2, [None, None, None], [{"0": 1}, {"1": 1}, None]),
        ("0123", 2, [None, None], [{"0": 1, "1": 1}, {"2": 1, "3": 1}]),
        ("01", 4, [None] * 4, [{"0": 0.5}, {"1": 0.5}, {"0": 0.5}, {"1": 0.5}]),
        ("01", 3, [2, None], [{"0": 1, "1": 1}, None]),
        ("0", 3, [0.5, 1, 0.5, 0], [{"0": 0.5}, None, {"0": 0.5}, {}]),
    ],
)
def test_devices_are_shared_out_without_giving_one_twice(devices, workers, wanted, got):
    assert shares(tuple(devices), workers, *wanted) == got


@pytest.mark.parametrize(
    ("told", "workers", "threads"),
    [(None, 1, 8), (None, 3, 2), (None, 20, 1), ("1", 2, 1), ("16", 2, 4), ("", 2, 4)],
)
def test_cores_are_shared_out_between_the_runs(monkeypatch, told, workers, threads):
    monkeypatch.setattr("anytime_lab.run.places.cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if told is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert threads_of(workers) == threads


def test_more_devices_than_there_are_is_refused_before_anything_runs(tmp_path):
    row_notebook(tmp_path)
    path = tmp_path / "s.yaml"
    path.write_text("notebook: rows\ngpus: 2")
    here = LocalPlace(1, devices=("0",))
    with pytest.raises(ValueError, match="asks for 2 GPUs and this machine has 1"):
        run_sweep(prepare_sweep(path, tmp_path / "out"), executor=here)
    assert not list((tmp_path / "out").rglob("run.json"))


def test_a_place_is_opened_by_its_name(tmp_path):
    assert set(PLACES) == {"local", "ray"}
    assert isinstance(open_place("local", tmp_path, 3), LocalPlace)
    with pytest.raises(ValueError, match="no executor 'slurm'; choose local or ray"):
        open_place("slurm", tmp_path)
    with pytest.raises(ValueError, match="go to a folder; leave out the storage s3://.*@b/x, or"):
        open_place("local", tmp_path, storage="s3://key:secret@b/x")
