"""BRPOTrainer against independent ways to the same numbers, on hand-made trees."""

import hashlib
import json
import math

import pytest
import tiny
import torch
from trl import GRPOConfig, GRPOTrainer

from anytime_lab.train.config import PRESETS, train_config
from anytime_lab.train.scoring import TreeRows, live_columns
from anytime_lab.train.trainer import BRPOTrainer
from anytime_lab.tree import pack
from anytime_lab.verify.verifiers import ExactVerifier, Grade

SGD = {"optim": "sgd", "learning_rate": 1.0, "max_steps": 1, "max_grad_norm": 0.0}


def build(folder, reward=tiny.digit_reward, *, model=None, data=None, trees=True, cls=BRPOTrainer,
          init=None, **settings):  # fmt: skip
    tok = tiny.tokenizer()
    config = tiny.config(folder, **settings)
    trainer = cls(
        tiny.model(tok) if model is None else model,
        reward,
        config,
        data or tiny.problems(),
        processing_class=tok,
        **(init or {}),
    )
    return tiny.with_trees(trainer) if trees else trainer


def weights(trainer):
    return {k: v.detach().clone() for k, v in trainer.model.named_parameters() if v.requires_grad}


def change(trainer):
    """How training moves each weight; with plain SGD at rate 1 the negative gradient."""
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    return {k: after[k] - before[k] for k in before}


def assert_same(first, second, tolerance=1e-5):
    assert first.keys() == second.keys()
    largest = max(v.abs().max() for v in first.values())
    assert largest > 1e-4  # nothing moved would be equal too
    rounding = 2.4e-7  # of weights near 1, from whose change the gradient is read
    for name in first:
        torch.testing.assert_close(
            first[name], second[name], rtol=0, atol=tolerance * float(largest) + rounding, msg=name
        )


def lines(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


# --- the loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "honoured",
    [
        {},
        {"loss_type": "dapo", "epsilon_high": 0.28, "delta": 1.5, "num_iterations": 2},
        {"loss_type": "cispo", "epsilon_high": 5.0},
        {"loss_type": "sapo", "sapo_temperature_neg": 2.0, "num_iterations": 2},
        {"loss_type": "grpo", "top_entropy_quantile": 0.3},
        {"loss_type": "bnpo", "entropy_coef": 0.1, "reward_weights": [2.0]},
        {"use_adaptive_entropy": True, "entropy_coef": 0.05, "entropy_target": 9.0},
        {"cast_lm_head_to_fp32": True, "pad_to_multiple_of": 8, "temperature": 0.7},
        {"shuffle_dataset": False, "steps_per_generation": 2, "per_device_train_batch_size": 4},
    ],
    ids=lambda fields: ",".join(fields) or "defaults",
)
def test_one_budget_and_one_summary_is_grpo_without_scaling(tmp_path, honoured):
    def reward(completion_ids, **_):
        return [(sum(ids) % 7) / 7 for ids in completion_ids]

    settings = {"budgets": [12], "num_summaries": 1, "baseline": "group", "check_format": False}
    sgd = {**SGD, "learning_rate": 0.1, "max_steps": 2, **honoured}
    ours = build(tmp_path / "ours", reward, **settings, **sgd)

    def rollout(prompts, trainer):
        rows = [(tree, pack(tree)) for tree in ours.sample_trees(prompts)]
        return {
            "prompt_ids": [list(tree.prompt) for tree, _ in rows],
            "completion_ids": [list(row.ids) for _, row in rows],
            "logprobs": [list(row.logprobs) for _, row in rows],
            "env_mask": [list(row.trained) for _, row in rows],
        }

    shared = {k: v for k, v in ours.args.to_dict().items() if k in GRPOConfig.__dataclass_fields__}
    theirs = GRPOTrainer(
        tiny.model(),
        reward,
        GRPOConfig(
            **{**shared, "output_dir": str(tmp_path / "trl"), "generation_batch_size": None}
        ),
        tiny.problems(),
        processing_class=tiny.tokenizer(),
        rollout_func=rollout,
    )
    moved = []
    for trainer in (ours, theirs):
        torch.manual_seed(0)  # TRL shuffles the rows of a generation
        moved.append(change(trainer))
    assert_same(*moved)
    logs = [[h["loss"] for h in t.state.log_history if "loss" in h] for t in (ours, theirs)]
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)


def expected_gradient(trainer, trees, scores):
    """Equations 6-10 with one plain row for each trunk and each leaf.

    scores: (P, G, J, S).
    """
    args = trainer.args
    model = tiny.model()
    problems, group, budgets, summaries = scores.shape
    prior = args.budget_prior.weights
    loss = torch.zeros(())
    for p in range(problems):
        r = scores[p].mean(-1)  # (G, J)
        ret = [[sum(prior[k] * r[g, k] for k in range(j, budgets)) for j in range(budgets)]
               for g in range(group)]  # fmt: skip
        for g in range(group):
            tree = trees[p * group + g]
            prompt = list(tree.prompt)
            advantages = []
            for j in range(budgets):
                past = [args.discount ** (j - i) for i in range(j)]
                progress = sum(w * r[g, i] for i, w in enumerate(past)) / sum(past) if j else 0.0
                v1 = progress * sum(prior[j:])
                v2 = sum(ret[h][j] for h in range(group)) / group
                advantages.append(ret[g][j] - (j * v1 + (budgets - j) * v2) / budgets)
            logps = row_logps(model, prompt, list(tree.thinking))
            for t, logp in enumerate(logps, start=1):
                loss -= advantages[min(j for j, b in enumerate(args.budgets) if b >= t)] * ratio(
                    logp
                )
            for number, leaf in enumerate(tree.leaves):
                j, s = divmod(number, summaries)
                peers = [scores[p, g, k, q] for k in range(budgets) for q in range(summaries)
                         if tree.leaves[k * summaries + q].cut == leaf.cut]  # fmt: skip
                advantage = scores[p, g, j, s] - sum(peers) / len(peers)
                context = prompt + list(tree.thinking[: leaf.cut]) + list(leaf.forced)
                logps = row_logps(model, context, list(leaf.summary))
                loss -= advantage * ratio(logps).sum() / (budgets * summaries)
    loss = loss / (problems * group * args.max_completion_length)
    loss.backward()
    return loss.item(), {k: v.grad for k, v in model.named_parameters()}


def ratio(logp):
    """1, with the gradient of the log-prob: the policy is the one that sampled."""
    return (logp - logp.detach()).exp()


def row_logps(model, context, tokens):
    ids = torch.tensor([context + tokens])
    logits = model(input_ids=ids).logits[0, len(context) - 1 : -1]
    return logits.log_softmax(-1).gather(1, ids[0, len(context) :, None])[:, 0]


def watched(trainer):
    """The trees and scores (P, G, J, S) of the last generation, once it is trained on."""
    kept = {}
    inner = trainer._recorder.log_generation

    def spy(mode, scores, numbers, group):
        kept["trees"], kept["scores"] = list(trainer._trees), scores.unflatten(0, (-1, group))
        inner(mode, scores, numbers, group)

    trainer._recorder.log_generation = spy
    return kept


@pytest.mark.parametrize("backend", ["segmented", "dense", "unrolled"])
def test_loss_and_gradient_are_the_method_worked_out_row_by_row(tmp_path, backend):
    trainer = build(tmp_path, tree_backend=backend, prior=[0.2, 0.3, 0.5], **SGD)
    kept = watched(trainer)
    moved = change(trainer)
    loss, gradient = expected_gradient(trainer, kept["trees"], kept["scores"])
    assert_same(moved, {k: -v for k, v in gradient.items()})
    assert lines(tmp_path)[0]["loss"] == pytest.approx(loss, abs=1e-6)
    assert {tree.end for tree in kept["trees"]} == {"length", "closed", "eos"}


def test_s_grpo_trains_one_whole_row_for_each_exit(tmp_path):
    preset = train_config("s_grpo", tiny.BUDGETS, output_dir="unused")
    names = ("num_summaries", "train_summaries", "baseline", "length_penalty")
    settings = {name: getattr(preset, name) for name in names} | SGD
    trainer = build(tmp_path, mostly_wrong, check_format=False, **settings)
    kept = watched(trainer)
    moved = change(trainer)
    model, loss = tiny.model(), torch.zeros(())
    for tree, scores in zip(kept["trees"], kept["scores"].flatten(0, 1)[..., 0], strict=True):
        exits, right = {}, 0  # cut -> the first summary that stands on it, and its reward
        for leaf, score in zip(tree.leaves, scores.tolist(), strict=True):
            if leaf.cut not in exits:
                exits[leaf.cut] = leaf, score / 2**right
                right += score > 0
        mean = sum(reward for _, reward in exits.values()) / len(exits)
        for leaf, reward in exits.values():
            before = [*tree.prompt, *tree.thinking[: leaf.cut], *leaf.forced]
            thought = row_logps(model, list(tree.prompt), list(tree.thinking[: leaf.cut]))
            logps = torch.cat([thought, row_logps(model, before, list(leaf.summary))])
            loss -= (reward - mean) * ratio(logps).sum() / len(tiny.BUDGETS)
    loss = loss / (len(kept["trees"]) * trainer.args.max_completion_length)
    loss.backward()
    assert_same(moved, {name: -value.grad for name, value in model.named_parameters()})
    assert kept["scores"].unique().tolist() == [0, 1]


@pytest.mark.parametrize("settings", [{}, {"beta": 0.1, "num_iterations": 2, "max_steps": 2}])
@pytest.mark.parametrize("backend", ["dense", "unrolled"])
def test_backends_agree(tmp_path, backend, settings):
    tiny.model().save_pretrained(tmp_path / "model")
    model = str(tmp_path / "model")
    settings = {**SGD, **settings}
    reference = build(tmp_path / "a", model=model, tree_backend="segmented", **settings)
    assert reference.tree_backend == "segmented"
    other = build(tmp_path / "b", model=model, tree_backend=backend, **settings)
    assert_same(change(reference), change(other))


@pytest.mark.parametrize(("rows", "steps"), [(4, 2), (2, 4), (1, 8)])
def test_the_loss_does_not_depend_on_micro_batches(tmp_path, rows, steps):
    whole = build(tmp_path / "a", **SGD)
    split = build(
        tmp_path / "b", per_device_train_batch_size=rows, gradient_accumulation_steps=steps, **SGD
    )
    assert_same(change(whole), change(split))
    assert lines(tmp_path / "a")[0]["loss"] == pytest.approx(lines(tmp_path / "b")[0]["loss"], 1e-4)


def test_only_what_has_an_advantage_and_what_it_stands_on_is_run(tmp_path):
    """Two rows by hand: a trunk of 4 with leaves at 2 and 4, and one whose leaves are settled."""
    leaf = torch.tensor([[-1, -1, -1, -1, 0, 0, 1, 1], [-1, -1, -1, 0, 0, 1, 1, -2]])
    branch = torch.tensor([[0, 1, 2, 3, 2, 2, 4, 4], [0, 1, 2, 2, 2, 3, 3, 0]])
    trained = torch.tensor([[1, 1, 1, 1, 0, 1, 0, 1], [1, 1, 1, 0, 1, 0, 1, 0]])
    advantages = torch.tensor([[0.5, 0, 0, 0, 0, 0.3, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]])
    kept = live_columns(advantages, TreeRows(leaf, branch, trained))
    assert kept.int().tolist() == [[1, 1, 0, 0, 1, 1, 0, 0], [0] * 8]


def test_prompts_as_text_and_padding_to_a_multiple_change_nothing(tmp_path):
    data = tiny.problems(conversational=False)
    first = build(tmp_path / "a", data=data, **SGD)
    second = build(tmp_path / "b", data=data, pad_to_multiple_of=16, **SGD)
    assert_same(change(first), change(second))


def test_gradient_checkpointing_changes_nothing(tmp_path):
    first = build(tmp_path / "a", **SGD)
    second = build(tmp_path / "b", gradient_checkpointing=True, **SGD)
    assert_same(change(first), change(second))


def mostly_wrong(prompts, completions, **columns):
    """Right for a fifth of the summaries, so that many of a cut agree and have no advantage."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float(sum(map(ord, text)) % 5 == 0) for text in texts]


SKIPPED = [
    {"tree_backend": "segmented"},
    {"tree_backend": "dense", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    {"tree_backend": "unrolled"},
    {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    {"steps_per_generation": 2, "per_device_train_batch_size": 4, "num_iterations": 2,
     "max_steps": 4, "learning_rate": 0.1},
    *({"loss_type": loss, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
      for loss in ("dapo", "bnpo", "grpo", "cispo", "sapo")),
    {"budgets": [40, 80, 120]},  # all past the end of a thinking: one cut
    {"train_summaries": "last", "baseline": "group"},
    {"gradient_checkpointing": True},
]  # fmt: skip


@pytest.mark.parametrize("settings", SKIPPED, ids=lambda s: ",".join(map(str, s.values())))
def test_what_has_no_gradient_is_left_out_and_the_gradient_stays(tmp_path, settings):
    moved, told = [], []
    for skips in (False, True):
        given = {**SGD, **settings, "skip_dead_tokens": skips}
        trainer = build(tmp_path / str(skips), mostly_wrong, **given)
        trainer._spare_columns = 8  # so that tiny rows are run in several passes
        torch.manual_seed(0)  # TRL shuffles the rows of a generation
        moved.append(change(trainer))
        told.append(lines(tmp_path / str(skips)))
    assert_same(*moved, tolerance=1e-6)
    assert 0 < told[1][-1]["total/packed_tokens"] < told[0][-1]["total/packed_tokens"]
    for before, after in zip(*told, strict=True):
        assert after["loss"] == pytest.approx(before["loss"], abs=1e-6)
        for name in ("clip_ratio/region_mean", "kl"):  # means over all tokens, as before
            assert after.get(name) == pytest.approx(before.get(name))


def test_an_adapter_skips_what_has_no_gradient_too(tmp_path):
    from peft import LoraConfig

    moved = []
    for skips in (False, True):
        peft_config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        torch.manual_seed(1)
        trainer = build(
            tmp_path / str(skips), mostly_wrong, init={"peft_config": peft_config},
            skip_dead_tokens=skips, **SGD,
        )  # fmt: skip
        torch.manual_seed(0)
        moved.append(change(trainer))
    assert_same(*moved, tolerance=1e-6)


def test_fewer_columns_are_run_where_summaries_agree(tmp_path):
    seen = {}
    for skips in (False, True):
        trainer = build(tmp_path / str(skips), mostly_wrong, skip_dead_tokens=skips, **SGD)
        columns = []

        def count(model, given, named, columns=columns):
            columns.append(named["input_ids"].numel() if named.get("fused_lm_head") else 0)

        trainer.model.register_forward_pre_hook(count, with_kwargs=True)
        trainer.train()
        seen[skips] = sum(columns)
    assert seen[True] < 0.8 * seen[False]


@pytest.mark.parametrize("backend", ["segmented", "dense", "unrolled"])
def test_where_no_token_has_an_advantage_nothing_moves(tmp_path, backend):
    trainer = build(tmp_path, lambda prompts, **_: [1.0] * len(prompts), check_format=False,
                    tree_backend=backend, baseline="group", **SGD)  # fmt: skip
    assert all(not v.any() for v in change(trainer).values())
    assert lines(tmp_path)[0]["loss"] == 0


@pytest.mark.parametrize(
    "settings",
    [{"entropy_coef": 0.1}, {"top_entropy_quantile": 0.5}, {"skip_dead_tokens": False}],
    ids=str,
)
def test_a_loss_that_needs_every_token_says_so(tmp_path, settings, caplog):
    trainer = build(tmp_path, **settings, **SGD)
    assert not trainer._skips
    assert f"every token of a tree is run in an update: {next(iter(settings))}" in (
        caplog.text.replace("the entropy bonus", "entropy_coef")
    )


# --- rewards ------------------------------------------------------------------------------------


def test_the_reward_sees_every_leaf_as_text_without_eos(tmp_path):
    seen = {}

    def reward(prompts, completions, completion_ids, answer, **_):
        seen.update(prompts=prompts, texts=completions, ids=completion_ids, answer=answer)
        return [0.0] * len(prompts)

    trainer = build(tmp_path, reward, data=tiny.problems(conversational=False), **SGD)
    trainer.train()
    trees = trainer.sample_trees(seen["prompts"][:: 3 * 2])
    assert len(seen["texts"]) == 8 * 3 * 2
    row = 0
    for tree in trees:
        for leaf in tree.leaves:
            ids = [*tree.thinking[: leaf.cut], *leaf.forced, *leaf.summary]
            assert list(seen["ids"][row]) == ids
            shown = [t for t in ids if t not in trainer.tokens.eos_ids]
            assert seen["texts"][row] == trainer.processing_class.decode(shown)
            row += 1
    assert "**Final Answer**" in seen["texts"][0]


def test_an_async_reward_and_weights_give_the_same_as_one_function(tmp_path):
    async def half(prompts, completions, **columns):
        return tiny.digit_reward(prompts, completions)

    one = build(tmp_path / "a", **SGD)
    two = build(tmp_path / "b", [half, tiny.digit_reward], reward_weights=[0.25, 0.75], **SGD)
    assert_same(change(one), change(two))
    assert "rewards/half/mean" in two.state.log_history[0]


def test_a_summary_on_which_the_reward_abstains_leaves_the_means(tmp_path):
    def sometimes(prompts, completions, **_):
        scores = tiny.digit_reward(prompts, completions)
        return [None if i % 3 == 0 else s for i, s in enumerate(scores)]

    trainer = build(tmp_path, sometimes, check_format=False, **SGD)
    moved = change(trainer)
    assert all(v.isfinite().all() for v in moved.values())
    line = lines(tmp_path)[0]
    assert line["abstained"] == pytest.approx(1 / 3)
    assert 0 < line["anytime_accuracy"] < 1


def test_a_reward_that_always_abstains_moves_nothing(tmp_path):
    trainer = build(tmp_path, lambda prompts, **_: [None] * len(prompts), **SGD)
    assert all(not v.any() for v in change(trainer).values())
    assert lines(tmp_path)[0]["anytime_accuracy"] is None  # NaN is not JSON


def test_an_infinite_reward_is_refused_by_name(tmp_path):
    def log_odds(prompts, **_):
        return [-math.inf] * len(prompts)

    trainer = build(tmp_path, [tiny.digit_reward, log_odds], **SGD)
    with pytest.raises(ValueError, match="'log_odds' is infinite(.|\n)*None to abstain"):
        trainer.train()


def test_a_thinking_that_ends_in_eos_scores_nothing_at_its_end(tmp_path):
    trainer = build(tmp_path, lambda prompts, **_: [1.0] * len(prompts), **SGD)
    kept = {}
    inner = trainer._recorder.log_generation

    def spy(mode, scores, numbers, group):
        kept["scores"], kept["trees"] = scores, list(trainer._trees)
        inner(mode, scores, numbers, group)

    trainer._recorder.log_generation = spy
    trainer.train()
    assert "eos" in {tree.end for tree in kept["trees"]}
    for scores, tree in zip(kept["scores"], kept["trees"], strict=True):
        for j, budget in enumerate(trainer.args.budgets):
            at_end = tree.end == "eos" and budget >= len(tree.thinking)
            assert (scores[j] == (0.0 if at_end else 1.0)).all()


def test_extra_columns_of_a_reward_are_logged_once_a_tree(tmp_path):
    def reward(prompts, completions, log_extra, log_metric, **_):
        log_extra("note", [len(c[0]["content"]) for c in completions])
        log_metric("mine", 0.5)
        return [0.0] * len(prompts)

    trainer = build(tmp_path, reward, log_completions=True, **SGD)
    trainer.train()
    assert trainer.state.log_history[0]["mine"] == 0.5
    assert (tmp_path / "completions" / "completions_00001.parquet").exists()


def test_the_length_penalty_lowers_long_right_thinkings(tmp_path):
    plain = build(tmp_path / "a", **SGD)
    short = build(tmp_path / "b", length_penalty="linear", length_penalty_alpha=0.5, **SGD)
    first, second = change(plain), change(short)
    assert any(not torch.allclose(first[k], second[k]) for k in first)
    a, b = lines(tmp_path / "a")[0], lines(tmp_path / "b")[0]
    assert a["anytime_accuracy"] == b["anytime_accuracy"]  # reported before the penalty


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains(tmp_path, name):
    common = tiny.config(tmp_path).to_dict()
    given = {f for f in ("output_dir", "num_generations", "per_device_train_batch_size",
                         "max_summary_tokens", "gradient_checkpointing", "report_to", "use_cpu",
                         "disable_tqdm", "save_strategy")}  # fmt: skip
    settings = {k: common[k] for k in given}
    config = train_config(name, tiny.BUDGETS, **settings, **SGD)
    trainer = BRPOTrainer(
        tiny.model(), ExactVerifier(answer_column="answer"), config, tiny.problems(),
        processing_class=tiny.tokenizer(),
    )  # fmt: skip
    tiny.with_trees(trainer).train()
    line = lines(tmp_path)[0]
    assert math.isfinite(line["loss"])
    assert [k for k in line if k.startswith("score/")] == [f"score/{b}" for b in config.budgets]


def test_last_trains_the_final_summaries_only(tmp_path):
    trainer = build(tmp_path, train_summaries="last", num_summaries=1, baseline="none", **SGD)
    inputs = [row for row in tiny.problems().select(range(2)) for _ in range(4)]
    trainer.model.train()
    batch = trainer._generate_and_score_completions(inputs)
    early = (batch["tree_leaf"] == 0) | (batch["tree_leaf"] == 1)
    assert not batch["advantages"][early].any()
    assert batch["advantages"][batch["tree_leaf"] == 2].any()


def test_unweighted_summaries_weigh_as_many_times_as_there_are_and_the_thinking_as_before(tmp_path):
    batches = []
    for weighting in ("eq10", "authors"):
        trainer = build(tmp_path / weighting, summary_weighting=weighting, **SGD)
        trainer.model.train()
        inputs = [row for row in tiny.problems().select(range(2)) for _ in range(4)]
        batches.append(trainer._generate_and_score_completions(inputs))
    paper, authors = (batch["advantages"] for batch in batches)
    on_leaf = batches[0]["tree_leaf"] >= 0
    assert torch.equal(authors[~on_leaf], paper[~on_leaf]) and paper[on_leaf].any()
    torch.testing.assert_close(authors[on_leaf], paper[on_leaf] * 3 * 2)  # budgets, summaries


# --- adapters, checkpoints, evaluation ------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_lora_trains_the_adapter_only(tmp_path, beta):
    from peft import LoraConfig

    peft_config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = build(tmp_path, init={"peft_config": peft_config}, beta=beta, max_steps=2)
    moved = change(trainer)
    assert all("lora" in name for name in moved)
    assert any(v.abs().max() > 0 for v in moved.values())
    if beta:  # the reference is the base model: no divergence before the first update
        assert lines(tmp_path)[0]["kl"] == pytest.approx(0, abs=1e-6)
        assert lines(tmp_path)[1]["kl"] > 0


def test_kl_keeps_the_policy_at_its_reference(tmp_path):
    tiny.model().save_pretrained(tmp_path / "model")
    trainer = build(tmp_path / "run", model=str(tmp_path / "model"), beta=0.5, max_steps=2)
    trainer.train()
    first, second = lines(tmp_path / "run")
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert second["kl"] > 0


def test_evaluate_reports_the_same_metrics_with_a_prefix(tmp_path):
    data = tiny.problems(4)
    trainer = build(
        tmp_path, init={"eval_dataset": data}, num_generations_eval=2, per_device_eval_batch_size=4
    )
    metrics = trainer.evaluate()
    assert {"eval_loss", "eval_anytime_accuracy", "eval_score/12"} <= metrics.keys()
    (line,) = lines(tmp_path, "eval_metrics.jsonl")
    assert line["eval_anytime_accuracy"] == metrics["eval_anytime_accuracy"]
    trainer.train()
    assert len(lines(tmp_path)) == 2


def test_the_manifest_of_a_run_describes_its_problems_and_each_session(tmp_path):
    data = tiny.problems()
    data.info.description, data.info.homepage = "maths", "https://hub/maths/tree/abc"
    build(tmp_path, data=data, max_steps=2, save_strategy="steps", save_steps=1).train()
    build(tmp_path, data=data, max_steps=3).train(resume_from_checkpoint=True)
    told = json.loads((tmp_path / "training.json").read_text())
    rows = b"".join(json.dumps(row, sort_keys=True).encode() + b"\n" for row in data)
    assert told["dataset"] == {
        "source": "maths",
        "revision": "abc",
        "problems": len(data),
        "sha256": hashlib.sha256(rows).hexdigest(),
    }
    assert told["settings"]["budgets"] == list(tiny.BUDGETS)
    first, second = told["sessions"]
    assert first["resumed_from"] is None and second["resumed_from"].endswith("checkpoint-2")


def test_a_line_of_metrics_counts_the_grades_that_a_limit_cut_short(tmp_path):
    class Failing(ExactVerifier):
        def grade_answers(self, answers, golds):
            return [Grade(0.0, a, ("timed out", "crashed")[len(a) % 2]) for a in answers]

    trainer = build(tmp_path, Failing(header=None), max_steps=2, logging_steps=50)
    seen = []
    grade = trainer.reward_funcs[0].grade
    trainer.reward_funcs[0].grade = lambda *given: seen.append(grade(*given)) or seen[-1]
    trainer.train()
    for line, grades in zip(lines(tmp_path), seen, strict=True):
        reasons = [g.reason for g in grades]
        told = [line[f"exact/{name}"] for name in ("timed_out", "out_of_memory", "crashed")]
        assert told == [reasons.count(r) for r in ("timed out", "out of memory", "crashed")]
        assert told[0] + told[2] > 0


def test_a_line_of_metrics_holds_scores_variance_times_and_tokens(tmp_path):
    trainer = build(tmp_path, max_steps=2, logging_steps=50, skip_dead_tokens=False)
    trainer.train()
    first, second = lines(tmp_path)
    assert [first["step"], second["step"]] == [1, 2]
    for name in ("progress", "group", "brpo"):
        for budget in tiny.BUDGETS:
            names = {f"variance/{measure}/{name}/{budget}" for measure in ("corr", "ratio")}
            assert names <= first.keys()
            assert 0 <= first[f"variance/reached/{budget}"] <= 1
    parts = first["time/rollout"] + first["time/update"]
    assert first["time/generation"] + first["time/scoring"] <= first["time/rollout"]
    assert 0 < parts <= first["time/step"] * 1.01
    assert second["seconds"] == pytest.approx(first["seconds"] + second["time/step"])
    assert second["total/thinking_tokens"] == first["tokens/thinking"] + second["tokens/thinking"]
    assert 0 < first["cpu_seconds"] < second["cpu_seconds"]
    kinds = ("prompt", "thinking", "summary")
    sampled_from = sum(second[f"total/{kind}_tokens"] for kind in kinds)
    assert sampled_from == trainer.state.num_input_tokens_seen  # as TRL counts them
    assert sampled_from < second["total/packed_tokens"]  # forced text, too
    assert first["learning_rate"] == 1e-3
    assert first["grad_norm"] > 0
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert (progress["done"], progress["total"]) == (2, 2)
