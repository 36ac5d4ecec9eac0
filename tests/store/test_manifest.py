"""What a manifest says of code, model and data: hashes that change when, and only when, they do."""

import hashlib
import json
import sys

import pytest

from anytime_lab.store.manifest import describe_rows, environment, hash_model_folder


def write_model(folder, weights=b"w", config="{}"):
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(config)
    return folder


def test_the_hash_of_a_model_folder_worked_by_hand(tmp_path):
    told = hash_model_folder(write_model(tmp_path / "m", b"weights", '{"a": 1}'))
    wanted = hashlib.sha256(b'config.json\0{"a": 1}model.safetensors\0weights').hexdigest()
    assert told == wanted


def test_the_hash_follows_weights_and_config_only(tmp_path):
    model = write_model(tmp_path / "m")
    before = hash_model_folder(model)
    (model / "optimizer.pt").write_bytes(b"x")
    (model / "README.md").write_text("x")
    assert hash_model_folder(model) == before
    assert hash_model_folder(write_model(tmp_path / "copy")) == before
    assert hash_model_folder(write_model(model, b"v")) != before
    assert hash_model_folder(write_model(model, b"w", "[]")) != before


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"holds no \*.safetensors or \*.bin"):
        hash_model_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="give the folder of a saved model"):
        hash_model_folder(tmp_path / "none")


def test_rows_are_hashed_by_content_and_order():
    rows = [{"id": "p1", "gold": "1"}, {"id": "p2", "gold": "2"}]
    told = describe_rows(iter(rows))
    lines = b"".join(json.dumps(row, sort_keys=True).encode() + b"\n" for row in rows)
    assert told == {"problems": 2, "sha256": hashlib.sha256(lines).hexdigest()}
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
