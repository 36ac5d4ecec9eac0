"""What a manifest says of code, model and data: hashes that change when, and only when, they do."""

import hashlib
import json
import sys

import pytest

from anytime_lab.store.manifest import describe_model_folder, describe_rows, environment


def write_model(folder, weights=b"w", config="{}"):
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(config)
    return folder


def test_the_hash_of_a_model_folder_worked_by_hand(tmp_path):
    told = describe_model_folder(write_model(tmp_path / "m", b"weights", '{"a": 1}'))
    wanted = hashlib.sha256(b'config.json\0{"a": 1}model.safetensors\0weights').hexdigest()
    assert told == {"path": str(tmp_path / "m"), "sha256": wanted}


def test_the_hash_follows_weights_and_config_only(tmp_path):
    model = write_model(tmp_path / "m")
    before = describe_model_folder(model)["sha256"]
    (model / "optimizer.pt").write_bytes(b"x")
    (model / "README.md").write_text("x")
    assert describe_model_folder(model)["sha256"] == before
    assert describe_model_folder(write_model(tmp_path / "copy"))["sha256"] == before
    assert describe_model_folder(write_model(model, b"v"))["sha256"] != before
    assert describe_model_folder(write_model(model, b"w", "[]"))["sha256"] != before


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"holds no \*.safetensors or \*.bin"):
        describe_model_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="give the folder of a saved model"):
        describe_model_folder(tmp_path / "none")


def test_rows_are_hashed_by_content_and_order():
    rows = [{"id": "p1", "gold": "1"}, {"id": "p2", "gold": "2"}]
    told = describe_rows(iter(rows), "countdown", "made from seed 0")
    lines = b"".join(json.dumps(row, sort_keys=True).encode() + b"\n" for row in rows)
    assert told == {
        "name": "countdown",
        "problems": 2,
        "sha256": hashlib.sha256(lines).hexdigest(),
        "card": "made from seed 0",
    }
    assert describe_rows([dict(reversed(row.items())) for row in rows])["sha256"] == told["sha256"]
    assert describe_rows(rows[::-1])["sha256"] != told["sha256"]
    assert describe_rows(rows[:1])["sha256"] != told["sha256"]


def test_the_environment_names_this_python_and_the_libraries_that_are_there():
    told = environment()
    assert told["versions"]["python"] == sys.version.split()[0]
    import pyarrow

    assert told["versions"]["pyarrow"] == pyarrow.__version__
    assert told["command"][0] == sys.executable
    json.dumps(told, allow_nan=False)
