"""Models by name: the shipped one, a folder, or what only the hub knows."""

import pytest
import tiny
import torch

from anytime_lab.engines.load import MODEL_DIR, load_model, load_tokenizer, model_path


def test_embedded_is_the_shipped_folder():
    assert model_path("embedded") == str(MODEL_DIR)
    model = load_model("embedded", device="cpu")
    assert model.dtype == torch.float32 and not model.training
    assert load_tokenizer("embedded").padding_side == "left"


def test_a_folder_is_taken_as_it_is_and_a_name_is_left_to_the_hub(tmp_path):
    tiny.model().save_pretrained(tmp_path / "model")
    assert model_path(tmp_path / "model") == str(tmp_path / "model")
    assert load_model(tmp_path / "model", device="cpu", dtype="bfloat16").dtype == torch.bfloat16
    assert model_path("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"


@pytest.mark.parametrize("name", [3, None, "", ["embedded"]])
def test_a_model_is_named_by_text_or_path(name):
    with pytest.raises(TypeError, match="the model is .*; give a folder that save_pretrained"):
        load_model(name)


@pytest.mark.parametrize("name", ["./runs/none", "/nowhere/model", "~/none", "a/b/c"])
def test_a_folder_that_is_not_there_is_said_with_where_it_was_looked_for(name):
    with pytest.raises(FileNotFoundError, match="no model folder(.|\n)*looked in(.|\n)*embedded"):
        model_path(name)
