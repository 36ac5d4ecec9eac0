"""Training with each of the thinking formats: rollouts, scores and the packed rows of the trees."""

import families
import pytest
import tiny
import torch

from anytime_lab.prompts import FORMATS as KNOWN
from anytime_lab.train.scoring import TreeRows, score_rows, stack_rows
from anytime_lab.train.trainer import BRPOTrainer
from anytime_lab.tree import pack

FORMATS = {
    "one token": ("qwen3", None),
    "several tokens": ("llama3", {"think_close": "ba", "cut_suffix": "...ba"}),
    "no marker": ("llama3", None),
    "channels": ("gpt-oss", None),
}


def built(tmp_path, name, **settings):
    family, wanted = FORMATS[name]
    tok = families.tokenizer(family)
    config = tiny.config(
        tmp_path, thinking_format=wanted, max_summary_tokens=70, learning_rate=1e-2, **settings
    )
    model = families.model(tok, "abc", seed=3)
    return BRPOTrainer(model, tiny.digit_reward, config, tiny.problems(), processing_class=tok)


@pytest.mark.parametrize("name", FORMATS)
def test_a_step_trains_what_was_sampled_in_the_format(tmp_path, name, capsys):
    trainer = built(tmp_path, name, max_steps=1)
    told, forced = capsys.readouterr().out, trainer.tokens.longest_forced
    assert "A prompt as the model sees it" in told
    assert f"max_summary_tokens the forced text takes {forced}, {70 - forced} are left." in told
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trees = []
    sample = trainer.sample_trees

    def kept(prompts):
        trees.extend(sample(prompts))
        return trees[-len(prompts) :]

    trainer.sample_trees = kept
    trainer.train()
    assert any(
        not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True)
    )
    (log,) = [line for line in trainer.state.log_history if "format_rate" in line]
    tokens = trainer.tokens
    eos = sum(tree.end == "eos" for tree in trees) / len(trees)
    assert log["thinking/eos"] == pytest.approx(eos, abs=1e-3)
    if not tokens.fmt.think_close:
        assert tokens.fmt == KNOWN["unmarked"][0] and eos == 0 and log["format_rate"] == 1
        assert {tree.end for tree in trees} == {"closed", "length"}
    else:
        good = [
            trainer.processing_class.decode([*t.thinking[: x.cut], *x.forced, *x.summary]).count(
                tokens.fmt.think_close
            ) == 1
            for t in trees for x in t.leaves
        ]  # fmt: skip
        assert log["format_rate"] == pytest.approx(sum(good) / len(good), abs=1e-3)


def test_an_answer_may_follow_a_thinking_that_ended_at_once(tmp_path):
    trainer = built(tmp_path, "no marker", max_steps=1)
    tokens, model = trainer.tokens, trainer.model.eval()
    (tree,) = [t for t in trainer.sample_trees([[{"role": "user", "content": str(n)}] for n in
               range(64)]) if t.leaves[0].cut == 0][:1]  # fmt: skip
    assert tree.thinking[0] in tokens.eos_ids and tree.end == "closed"
    row = pack(tree)
    rows = stack_rows([row], "cpu", None)
    ids = torch.tensor([[*tree.prompt, *row.ids]])
    scored = {
        name: score_rows(model, name, ids, torch.ones_like(ids), rows)
        for name in ("segmented", "dense", "unrolled")
    }
    for name in ("dense", "unrolled"):
        torch.testing.assert_close(scored[name].log_probs, scored["segmented"].log_probs)
    assert isinstance(rows, TreeRows)
