"""The model card says what was trained, its code runs, and its curve is of that model."""

import json
import re

import killable
import pandas as pd
import pytest
import tiny
from huggingface_hub import ModelCard
from peft import LoraConfig

from anytime_lab.read.told import told_curve
from anytime_lab.store.card import NOT_YET, put_curve
from anytime_lab.train.trainer import BRPOTrainer


def curve(correct=(0, 1)):
    """Markdown of a curve of four problems at two budgets."""
    rows = [
        {"problem_id": str(problem), "sample": 0, "summary": 0, "budget": budget, "cut": budget,
         "correct": bool(right), "score": float(right)}
        for problem in range(4) for budget, right in zip((3, 6), correct, strict=True)
    ]  # fmt: skip
    return told_curve(pd.DataFrame(rows), "countdown")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card") / "run"
    trainer = killable.make_trainer(folder, max_steps=2)
    trainer.train()
    trainer.save_model(f"{folder}/model")
    return folder, trainer


def test_a_saved_model_has_a_card_with_settings_data_and_code_that_loads_it(run):
    folder, trainer = run
    card = ModelCard.load(folder / "model" / "README.md")
    assert {"brpo", "trl"} <= set(card.data.tags)
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", card.text, re.M))
    assert rows["updates"] == "2" and rows["budgets"] == "[3, 6]"
    assert float(rows["learning_rate"]) == trainer.args.learning_rate
    manifest = json.loads((folder / "training.json").read_text())
    assert "16 problems" in card.text and manifest["dataset"]["sha256"] in card.text
    assert NOT_YET in card.text and "huggingface.co/papers/2505.13438" in card.text
    assert "time machine" not in card.text  # of TRL's template
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.S)
    loaded = {}
    exec(code, loaded)
    weights = loaded["model"].state_dict()
    assert all(weights[name].equal(w) for name, w in trainer.model.state_dict().items())
    assert loaded["tokenizer"].eos_token == trainer.processing_class.eos_token


def test_the_curve_stays_while_the_model_does_and_is_pushed(run, monkeypatch):
    folder, trainer = run
    put_curve(folder / "model", curve())
    put_curve(folder / "nowhere", curve())  # a name on the hub
    told = (folder / "model" / "README.md").read_text()
    assert "on 4 problems of countdown" in told and NOT_YET not in told
    assert "| 3 | 0.0" in told and "| 6 | 100.0" in told
    trainer.save_model(f"{folder}/model")
    assert (folder / "model" / "README.md").read_text() == told

    pushed = {}

    class Hub:
        def upload_folder(self, repo_id, folder_path, **_):
            pushed.update(repo=repo_id, card=ModelCard.load(f"{folder_path}/README.md").text)

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    trainer.hub_model_id = "me/mine"
    trainer.push_to_hub()
    trainer.hub_model_id = None
    assert pushed["repo"] == "me/mine" and "| 6 | 100.0" in pushed["card"]
    assert 'from_pretrained("me/mine")' in pushed["card"]

    again = killable.make_trainer(folder, max_steps=4)
    again.train(resume_from_checkpoint=True)
    again.save_model(f"{folder}/model")
    assert NOT_YET in (folder / "model" / "README.md").read_text()  # another model by now


def test_the_card_of_an_adapter_says_so(tmp_path):
    config = tiny.config(tmp_path / "run", max_steps=1)
    adapter = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    tiny.model().save_pretrained(tmp_path / "start")
    trainer = BRPOTrainer(
        str(tmp_path / "start"), tiny.digit_reward, config, tiny.problems(),
        processing_class=tiny.tokenizer(), peft_config=adapter,
    )  # fmt: skip
    trainer.save_model(f"{tmp_path}/run/model")
    told = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "AutoPeftModelForCausalLM" in told and "`lora` | {'default': {'rank': 4" in told
