"""Runs behind a URL: a finished one file by file, an unfinished one as of one moment."""

import json
import uuid

import fsspec
import pytest
from made_notebooks import row_notebook

from anytime_lab.run.process import FAILURE, LOG, RUN, Job
from anytime_lab.run.storage import PARTIAL, Storage, mirror
from anytime_lab.store.files import RESULT, write_json

NAME = "AR/seed-0/train"


@pytest.fixture(params=["memory", "file"])
def storage(request, tmp_path):
    where = "memory://" if request.param == "memory" else tmp_path.as_uri()
    return Storage(f"{where}/{uuid.uuid4()}/runs")


def made(folder, root, x=1, **files):
    """A run's folder with files, as what runs it would leave it."""
    run = Job(NAME, row_notebook(folder), {"x": x}, root / NAME)
    write_json(run.folder / RUN, {"hash": run.hash, "made_of": run.made_of})
    for name, text in files.items():
        path = run.folder / name.replace("__", "/").replace("_txt", ".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return run


def finish(run):
    write_json(run.folder / RESULT, {"hash": run.hash, "seconds": 1.0})


def texts(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix == ".txt"
    }


def test_an_unfinished_run_goes_on_elsewhere(storage, tmp_path):
    run = made(tmp_path, tmp_path / "one", rows_txt="1 2", model__w_txt="w", log_txt="why")
    write_json(run.folder / FAILURE, {"hash": run.hash, "reason": "no"})
    storage.keep(run)
    elsewhere = tmp_path / "two" / NAME
    storage.fetch(NAME, elsewhere)
    assert texts(elsewhere) == {"rows.txt": "1 2", "model/w.txt": "w", LOG: "why"}
    shown = tmp_path / "shown" / NAME
    storage.fetch(NAME, shown, told=True)
    assert sorted(path.name for path in shown.iterdir()) == sorted([RUN, LOG, FAILURE])


def test_a_finished_run_replaces_what_earlier_tries_left(storage, tmp_path):
    run = made(tmp_path, tmp_path / "one", rows_txt="1 2", old_txt="old")
    storage.keep(run)
    (run.folder / "old.txt").unlink()
    (run.folder / "model").mkdir()
    (run.folder / "model/w.txt").write_text("w")
    finish(run)
    storage.keep(run)
    assert not storage.fs.exists(f"{storage.root}/{NAME}/{PARTIAL}")
    elsewhere, shown = tmp_path / "two" / NAME, tmp_path / "shown" / NAME
    storage.fetch(NAME, elsewhere)
    assert texts(elsewhere) == {"rows.txt": "1 2", "model/w.txt": "w"}
    assert json.loads((elsewhere / RESULT).read_text())["hash"] == run.hash
    storage.fetch(NAME, shown, told=True)
    assert texts(shown) == {"rows.txt": "1 2"}, "a comparison reads no model"


def test_the_result_is_uploaded_last(storage, tmp_path, monkeypatch):
    run = made(tmp_path, tmp_path / "one", rows_txt="1", z_txt="z")
    finish(run)
    put, done = storage.fs.put_file, []

    def break_at_the_end(path, target, **rest):
        if len(done) == 2:  # of run.json and two files
            raise OSError("the node is gone")
        done.append(target)
        put(path, target, **rest)

    monkeypatch.setattr(storage.fs, "put_file", break_at_the_end)
    with pytest.raises(OSError, match="gone"):
        storage.keep(run)
    monkeypatch.undo()
    storage.fetch(NAME, tmp_path / "two" / NAME)
    assert not (tmp_path / "two" / NAME / RESULT).exists()


def test_another_run_is_kept_beside(storage, tmp_path):
    old = made(tmp_path, tmp_path / "one", x=1, rows_txt="old")
    finish(old)
    storage.keep(old)
    storage.set_aside(old)
    assert storage.fs.exists(f"{storage.root}/{NAME}/{RESULT}"), "the same run stays"
    new = made(tmp_path, tmp_path / "two", x=2)
    storage.set_aside(new)
    storage.fetch(NAME, tmp_path / "three" / NAME)
    assert not (tmp_path / "three" / NAME).exists()
    kept = f"{storage.root}/{NAME}/.replaced/{old.hash[:12]}"
    assert storage.fs.cat_file(f"{kept}/rows.txt") == b"old"
    assert storage.fs.exists(f"{kept}/{RESULT}")


def test_a_folder_shows_one_url_or_has_its_own(storage, tmp_path):
    out = tmp_path / "out"
    mirror(storage, out, [NAME])
    mirror(storage, out, [NAME])
    with pytest.raises(ValueError, match=f"give --storage {storage.url}"):
        mirror(None, out, [])
    with pytest.raises(ValueError, match="or choose another --out"):
        mirror(Storage("memory://b"), out, [])
    own = tmp_path / "own"
    own.mkdir()
    (own / RESULT).write_text("{}")
    with pytest.raises(ValueError, match="holds results of its own"):
        mirror(storage, own, [NAME])


def test_a_result_that_is_not_stored_does_not_count(storage, tmp_path):
    run = made(tmp_path, tmp_path / "out")
    finish(run)
    storage.fetch(NAME, run.folder, told=True)
    assert run.result is None


def test_an_unknown_protocol_is_refused():
    with pytest.raises(ValueError, match="nowhere://a cannot be opened"):
        Storage("nowhere://a")
    assert "s3" in fsspec.available_protocols()
