"""What a trainer refuses before any work: data, tokenizer, rewards, lengths, batches."""

import pytest
import tiny
from datasets import Dataset, IterableDataset
from trl import GRPOConfig

from anytime_lab.train.trainer import BRPOTrainer
from anytime_lab.verify.verifiers import CountdownVerifier, ExactVerifier


def build(folder, *, reward=None, data=None, tok=None, args=None, eval_data=None, **settings):
    tok = tok or tiny.tokenizer()
    return BRPOTrainer(
        tiny.model(),
        ExactVerifier() if reward is None else reward,
        args or tiny.config(folder, **settings),
        tiny.problems() if data is None else data,
        eval_data,
        processing_class=tok,
    )


def without_eos():
    tok = tiny.tokenizer()
    tok.eos_token = None
    return tok


def needs_difficulty(prompts, completions, difficulty, **columns):
    return [0.0] * len(prompts)


def prompts(*first):
    """A dataset with these prompts and good ones after them."""
    good = [{"role": "user", "content": "Reach 5"}] if isinstance(first[0], list) else "Reach 5"
    return Dataset.from_dict(
        {"prompt": [*first, *[good] * 12], "answer": ["1"] * (12 + len(first))}
    )


def turn(content, role="user"):
    return {"role": role, "content": content}


WRONG = [
    ({"data": prompts("Reach 6", " ")}, "train_dataset: the prompt of row 1 is empty; drop such"),
    ({"data": prompts("Reach 6", None)}, "row 1 is None \\(NoneType\\); expected a text or"),
    ({"data": Dataset.from_dict({"prompt": [5] * 12})}, "row 0 is 5 \\(int\\)"),
    ({"data": Dataset.from_dict({"prompt": [turn("x")] * 12})}, "row 0 is (.|\n)*a conversation"),
    ({"data": prompts([turn("Reach 6")], [])}, "row 1 is a conversation without messages"),
    ({"data": prompts([turn("Reach 6")], [turn(None)])}, "row 1 has the message(.|\n)*text only"),
    ({"data": prompts([turn("Reach 6", None)])}, "without a 'role'"),
    ({"data": prompts([turn("Reach 6"), turn("So", "assistant")])}, "drop that turn"),
    (
        {"data": Dataset.from_dict({"prompt": [[turn([{"type": "image", "text": None}])]] * 12})},
        "a 'content' of text only",
    ),
    (
        {"data": tiny.problems().rename_column("answer", "completions")},
        "rename_column\\('completions', 'own_completions'\\)",
    ),
    ({"data": prompts("Reach 5 " * 3000)}, "1024 positions. Drop the long prompts"),
    ({"data": tiny.problems().select([])}, "train_dataset is empty"),
    ({"data": tiny.problems(1)}, "1 problems, but one batch takes 2(.|\n)*Add problems"),
    ({"data": tiny.problems().rename_column("prompt", "q")}, "no 'prompt'(.|\n)*rename_column"),
    (
        {"data": tiny.problems().remove_columns("answer")},
        "needs \\['answer'\\](.|\n)*answer_column=",
    ),
    ({"reward": ExactVerifier(answer_column="gold")}, "needs \\['gold'\\]"),
    ({"reward": needs_difficulty}, "'needs_difficulty' needs \\['difficulty'\\]"),
    ({"data": tiny.problems().add_column("image", [None] * 12)}, "text only(.|\n)*remove_columns"),
    ({"data": IterableDataset.from_generator(lambda: iter(()))}, "yields nothing"),
    ({"eval_data": tiny.problems().remove_columns("answer")}, "eval_dataset has the columns"),
    ({"eval_data": {"hard": tiny.problems().select([])}}, "eval_dataset\\['hard'\\] is empty"),
    (
        {"eval_data": tiny.problems(), "per_device_eval_batch_size": 6},
        "Set per_device_eval_batch_size=4",
    ),
    ({"reward": []}, "no reward function was given(.|\n)*CountdownVerifier"),
    ({"max_summary_tokens": 3}, "the forced text alone takes 3 tokens. Set it to 3 plus"),
    ({"budgets": [4, 2000]}, "the model has 1024 positions. Lower the last budget to"),
    ({"tok": without_eos()}, "no EOS token(.|\n)*Set tokenizer.eos_token"),
    (
        {"beta": 0.1},
        "no name or folder that the reference model(.|\n)*use a peft_config, or set beta=0",
    ),
]


@pytest.mark.parametrize(("change", "says"), WRONG)
def test_what_does_not_go_together_is_refused_with_the_fix(tmp_path, change, says):
    with pytest.raises(ValueError, match=says):
        build(tmp_path / "run", **change)
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


KINDS = [
    ({"data": [{"prompt": "a"}]}, "train_dataset is a list; expected a datasets.Dataset"),
    ({"reward": CountdownVerifier}, "is a class; pass an object of it: CountdownVerifier\\(\\)"),
    ({"reward": 3}, "reward function 3 cannot be called"),
    ({"tok": tiny.model}, "expected a tokenizer(.|\n)*AutoTokenizer"),
]


@pytest.mark.parametrize(("change", "says"), KINDS)
def test_a_thing_of_another_kind_is_refused(tmp_path, change, says):
    with pytest.raises(TypeError, match=says):
        build(tmp_path, **change)


def test_a_config_of_trl_is_refused_with_what_to_use(tmp_path):
    args = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    with pytest.raises(
        TypeError, match="args is a GRPOConfig; expected a BRPOConfig(.|\n)*presets"
    ):
        build(tmp_path, args=args)


def test_a_chat_template_that_switches_thinking_off_is_refused(tmp_path):
    data = Dataset.from_dict({"prompt": ["Reach 5 </think>"] * 4, "answer": ["1"] * 4})
    with pytest.raises(ValueError, match="switches thinking off"):
        build(tmp_path, data=data)
