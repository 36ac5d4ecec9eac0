"""Rollout trees that training leaves: what is kept, what it says, and what a broken file says."""

import json
import math
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch

from anytime_lab.store.files import RunFolderError
from anytime_lab.store.rollouts import read_rollouts, rollout_path, rollout_steps, write_rollouts
from anytime_lab.train.recording import chosen_groups, credit
from anytime_lab.train.trainer import BRPOTrainer


def build(folder, **settings):
    trainer = BRPOTrainer(
        tiny.model(),
        tiny.digit_reward,
        tiny.config(folder, **settings),
        tiny.problems(),
        processing_class=tiny.tokenizer(),
    )
    return tiny.with_trees(trainer)


def test_credit_worked_by_hand(tmp_path):
    # one problem, two thinkings, budgets 4 8 12; scores are means of two summaries
    scores = torch.tensor([[[0.0, 0.5, 1.0], [0.0, 0.0, 0.5]]], dtype=torch.float64)
    leaf = torch.stack([scores, scores], dim=-1)
    cuts = torch.tensor([[[4, 8, 12], [4, 8, 10]]])
    told = credit(leaf, cuts, tiny.config(tmp_path, prior=[0.2, 0.3, 0.5]))
    # R_3 = .5 r_3, R_2 = R_3 + .3 r_2, R_1 = R_2 + .2 r_1
    assert told["returns"][0, 0].tolist() == pytest.approx([0.65, 0.65, 0.5])
    assert told["returns"][0, 1].tolist() == pytest.approx([0.25, 0.25, 0.25])
    # V2: mean of the two
    assert told["group"][0, 1].tolist() == pytest.approx([0.45, 0.45, 0.375])
    # V1 of thinking 0: 0, then 0 · .8, then (.5 · .5 + .25 · 0) / .75 · .5
    assert told["progress"][0, 0].tolist() == pytest.approx([0, 0, 1 / 3 * 0.5])
    # V = (j-1)/3 V1 + (4-j)/3 V2
    brpo = [0.65 - 0.45, 0.65 - 2 / 3 * 0.45, 0.5 - 2 / 3 / 6 - 1 / 3 * 0.375]
    assert told["advantage_brpo"][0, 0].tolist() == pytest.approx(brpo)
    assert told["advantage_group"][0, 0].tolist() == pytest.approx([0.2, 0.2, 0.125])
    assert told["advantage_progress"][0, 0].tolist() == pytest.approx([0.65, 0.65, 1 / 3])
    assert told["advantage_none"][0, 0].tolist() == pytest.approx([0.65, 0.65, 0.5])
    # GRPO: the final score against its mean of .75, on every token
    assert told["advantage_grpo"][0, 0].tolist() == pytest.approx([0.25] * 3)
    assert told["advantage_grpo"][0, 1].tolist() == pytest.approx([-0.25] * 3)


def test_the_group_that_varies_most_is_kept_and_the_first_other_one():
    flat, some, much = [[0.5], [0.5]], [[0.0], [0.5]], [[0.0], [1.0]]
    assert chosen_groups(torch.tensor([flat, some, much])) == [2, 0]
    assert chosen_groups(torch.tensor([much, some])) == [0, 1]
    assert chosen_groups(torch.tensor([flat])) == [0]


def test_a_run_leaves_the_trees_that_it_trained_on_and_their_advantages(tmp_path):
    trainer = build(tmp_path, max_steps=5, save_rollouts_steps=2, prior=[0.2, 0.3, 0.5])
    kept, inner = {}, trainer._generate_and_score_completions

    def spy(inputs):
        trees = trainer.sample_trees([row["prompt"] for row in inputs])
        output = inner(inputs)
        kept[trainer.state.global_step + 1] = trees, output["advantages"]
        return output

    trainer._generate_and_score_completions = spy
    trainer.train()
    assert rollout_steps(tmp_path) == [1, 2, 4]
    for step in (1, 2, 4):
        told = read_rollouts(tmp_path, step)
        trees, advantages = kept[step]
        assert told.budgets == tuple(tiny.BUDGETS) and told.baseline == "brpo"
        assert told.prior == (0.2, 0.3, 0.5)
        assert sorted(told.frame["problem"].tolist()) == [0] * 4 + [1] * 4
        for row in told.frame.itertuples():
            tree = trees[row.problem * 4 + row.sample]
            own = advantages[row.problem * 4 + row.sample]
            assert (row.tokens, row.end) == (len(tree.thinking), tree.end)
            assert len(row.thinking) == row.token_ends[-1]
            assert row.cuts.tolist() == [leaf.cut for leaf in tree.leaves[::2]]
            assert "Reach" in row.prompt
            start = 0
            for cut, advantage in zip(row.cuts, row.advantage_brpo, strict=True):
                assert own[start:cut].tolist() == pytest.approx(
                    [advantage] * (cut - start), abs=1e-6
                )
                start = cut
            place = len(tree.thinking)
            for number, leaf in enumerate(tree.leaves):
                place += len(leaf.forced)
                wanted = row.summary_advantages[number // 2][number % 2]
                assert float(own[place]) == pytest.approx(wanted, abs=1e-6)
                place += len(leaf.summary)


def test_grpo_runs_leave_trees_with_one_budget(tmp_path):
    build(tmp_path, budgets=[12], num_summaries=1, baseline="group", max_steps=1).train()
    told = read_rollouts(tmp_path, 1)
    row = told.frame.iloc[0]
    alone = ("progress", "serial")  # compare a thinking with its own other budgets
    advantages = {float(row[f"advantage_{n}"][0]) for n in told.baselines if n not in alone}
    assert len({round(a, 9) for a in advantages - {float(row["advantage_none"][0])}}) == 1
    assert row["progress"].tolist() == [0]


def test_zero_writes_none_and_evaluation_writes_none(tmp_path):
    build(tmp_path / "a", save_rollouts_steps=0).train()
    assert not (tmp_path / "a" / "rollouts").exists()
    with pytest.raises(ValueError, match="save_rollouts_steps is -1; expected at least 0"):
        tiny.config(tmp_path, save_rollouts_steps=-1)


def test_a_generation_that_serves_several_updates_is_kept_once(tmp_path):
    config = tiny.config(tmp_path, save_rollouts_steps=3, num_iterations=2)
    # generations begin at 1, 3, 5, 7, … and serve that update and the next
    assert [s for s in range(1, 13, 2) if config.saves_rollouts_at(s)] == [1, 3, 5, 9, 11]
    whole = tiny.config(tmp_path, save_rollouts_steps=3)
    assert [s for s in range(1, 10) if whole.saves_rollouts_at(s)] == [1, 3, 6, 9]


def test_a_resumed_run_leaves_the_same_files_as_an_unbroken_one(tmp_path):
    settings = {"save_rollouts_steps": 2, "save_strategy": "steps", "save_steps": 3}
    build(tmp_path / "whole", max_steps=6, **settings).train()
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    stale = rollout_path(tmp_path / "broken", 5)  # left by a run that went another way
    rollout_path(tmp_path / "broken", 4).rename(stale)
    build(tmp_path / "broken", max_steps=6, **settings).train(
        resume_from_checkpoint=str(tmp_path / "broken" / "checkpoint-3")
    )
    assert rollout_steps(tmp_path / "broken") == rollout_steps(tmp_path / "whole") == [1, 2, 4, 6]
    for step in (1, 2, 4, 6):
        first, second = (read_rollouts(tmp_path / name, step) for name in ("whole", "broken"))
        assert first.model_dump(exclude={"frame"}) == second.model_dump(exclude={"frame"})
        assert first.frame.to_json() == second.frame.to_json()


def test_an_abstained_score_is_kept_as_missing(tmp_path):
    scores = torch.ones(1, 2, 3, 2)
    scores[0, 0, 1] = math.nan
    told = credit(scores, torch.tensor([[[4, 8, 12]] * 2]), tiny.config(tmp_path))
    assert math.isnan(told["credited"][0, 0, 1])
    assert told["returns"].isfinite().all() and told["advantage_brpo"].isfinite().all()


def test_broken_files_say_what_they_are(tmp_path):
    build(tmp_path, max_steps=1).train()
    with pytest.raises(RunFolderError, match=r"step-000007.parquet does not exist"):
        read_rollouts(tmp_path, 7)
    whole = rollout_path(tmp_path, 1)
    table = pq.read_table(whole)
    rollout_path(tmp_path, 2).write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(RunFolderError, match="is damaged"):
        read_rollouts(tmp_path, 2)
    pq.write_table(pa.table({"a": [1]}), rollout_path(tmp_path, 3))
    with pytest.raises(RunFolderError, match="holds something else"):
        read_rollouts(tmp_path, 3)
    pq.write_table(table.drop_columns(["cuts"]), rollout_path(tmp_path, 4))
    with pytest.raises(RunFolderError, match=r"no column \['cuts'\]"):
        read_rollouts(tmp_path, 4)
    about = json.loads(table.schema.metadata[b"about"]) | {"budgets": [4, 8], "prior": [0.5, 0.5]}
    write_rollouts(tmp_path, 5, about, table.to_pylist())
    with pytest.raises(RunFolderError, match="do not fit 2 budgets"):
        read_rollouts(tmp_path, 5)
    assert rollout_steps(tmp_path) == [1, 2, 3, 4, 5]
    assert rollout_steps(tmp_path / "nowhere") == []
