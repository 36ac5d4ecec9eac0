"""A LoRA adapter that training saved is opened as a model: sampled, asked, merged and served."""

import pytest
import tiny
import torch
from completions_server import serving
from made_thoughts import QUESTION, think_on
from peft import LoraConfig, get_peft_model

from anytime_lab.engines.base import Sampling
from anytime_lab.engines.hf import HFEngine
from anytime_lab.engines.load import (
    CACHE,
    load_engine,
    load_model,
    load_thinker,
    load_tokens,
    merged_folder,
)
from anytime_lab.prompts import prompt_ids


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A folder of an adapter, and the model with it in memory."""
    folder = tmp_path_factory.mktemp("lora")
    tiny.model().save_pretrained(folder / "base")
    tiny.tokenizer().save_pretrained(folder / "base")
    torch.manual_seed(1)
    settings = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(load_model(folder / "base", device="cpu"), settings).eval()
    model.save_pretrained(folder / "adapter")
    return str(folder / "adapter"), model


def test_an_adapter_is_sampled_asked_merged_and_served(adapter, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE, str(tmp_path))
    folder, model = adapter
    tokens, greedy = load_tokens(folder), Sampling(temperature=0, max_summary_tokens=6)
    prompt = prompt_ids(QUESTION, tokens.tokenizer, tokens.fmt)
    (wanted,) = HFEngine(model, tokens).sample_trees([prompt], [10], 1, greedy)
    base = HFEngine(load_model(model.peft_config["default"].base_model_name_or_path), tokens)
    assert base.sample_trees([prompt], [10], 1, greedy)[0].thinking != wanted.thinking
    merged = merged_folder(folder)
    assert merged.startswith(str(tmp_path)) and merged == merged_folder(folder)
    for name in (folder, merged):
        (tree,) = load_engine("hf", name, tokens).sample_trees([prompt], [10], 1, greedy)
        assert (tree.thinking, tree.leaves[0].summary) == (
            wanted.thinking,
            wanted.leaves[0].summary,
        )
    with serving(load_model(folder), tokens, served=("mine",)) as (url, _):
        for opened, tokenizer in ((folder, ""), (url, folder)):
            thinker = load_thinker(opened, tokenizer, max_summary_tokens=6)
            thought = think_on(thinker.think(QUESTION, 0.0), 10)
            assert tuple(thought.ids) == wanted.thinking
            assert thought.answers(1)[0].text == tokens.decode(wanted.leaves[0].summary)
        thinker.engine.http.close()
