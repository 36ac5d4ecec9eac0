"""reasoning-gym as tasks: its problems, its own verifiers, disjoint splits."""

import importlib.util
import json
import sys

import pytest

from anytime_lab.tasks.gym import score
from anytime_lab.tasks.problems import QUESTION_SUFFIX, load_task

installed = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed"
)
HEADER = "so</think>\n\n**Final Answer**\n"


@installed
@pytest.mark.parametrize(
    ("generator", "options"), [("chain_sum", {"max_terms": 3}), ("leg_counting", {})]
)
def test_a_generator_gives_problems_with_its_own_verifier(generator, options):
    task = load_task(f"reasoning_gym/{generator}", "train", 20, **options)
    (row, *_) = task.problems
    assert len(set(task.problems["question"][:])) == 20
    assert row["prompt"] == [{"role": "user", "content": row["question"] + QUESTION_SUFFIX}]
    golds = task.problems["answer"][:4]
    right = [json.loads(gold)["answer"] for gold in golds]
    texts = [f"{HEADER}\\boxed{{{answer}}}" for answer in [*right, "7 apples", "-1"]]
    grades = task.verifier.grade(texts, [*golds, golds[0], golds[1]])
    task.verifier.close()
    assert [grade.reason for grade in grades] == ["correct"] * 4 + ["wrong"] * 2
    assert task.card.startswith(f"reasoning_gym/{generator}, train split, generated (seed 0")


@installed
def test_an_answer_that_is_not_the_generators_own_is_right_where_its_verifier_says_so():
    (gold,) = load_task("reasoning_gym/countdown", "test", 1).problems["answer"][:]
    answer = json.loads(gold)["answer"]
    assert score(f"({answer}) + 0", gold) < score(f"({answer})", gold) == score(answer, gold) == 1


@installed
def test_splits_are_disjoint_for_any_seed_and_a_seed_gives_the_same_problems_again():
    def asked(split, seed):
        rows = load_task("reasoning_gym/chain_sum", split, 40, seed=seed, max_terms=2, max_digits=1)
        return rows.problems["question"][:]

    train, test = asked("train", 0), asked("test", 1)
    assert train == asked("train", 0) != asked("train", 2)
    assert not set(train) & set(test)


@installed
@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("no_such", {}, "reasoning-gym has no generator 'no_such'; it has ab, acre"),
        ("chain_sum", {"terms": 3}, "chain_sum with the options .*unexpected keyword"),
        ("chain_sum", {"min_terms": 0}, "min_terms must be positive"),
        ("chain_sum", {"split": "dev"}, "expected 'train' or 'test'"),
        ("coin_flip", {"num_problems": 300}, "different ones of the train split. Ask for fewer"),
        ("chain_sum", {"require_all": True}, "a problem of reasoning_gym/chain_sum has one"),
    ],
)
def test_what_a_generator_cannot_do_is_told(name, options, says):
    with pytest.raises(ValueError, match=says):
        load_task(f"reasoning_gym/{name}", **options)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match=r"not installed. Install it: pip install -e '\.\[reason"):
        load_task("reasoning_gym/chain_sum", seed=12345)
