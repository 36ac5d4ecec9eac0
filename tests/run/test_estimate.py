"""The preflight's estimates against measured ones, what it reads from records, what it refuses."""

import contextlib
import dataclasses
import json
import math
import tempfile
from argparse import Namespace

import killable
import pytest
import torch
from made_runs import write_run
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from trl.trainer.utils import add_fused_lm_head

from anytime_lab.__main__ import PREFLIGHT, main
from anytime_lab.engines.load import load_model, load_tokenizer
from anytime_lab.prompts import resolve_tokens
from anytime_lab.run.estimate import GIB, Observed, make_plan, observe, refusals, report
from anytime_lab.run.notebook import NOTEBOOKS
from anytime_lab.train.scoring import choose_backend, score_rows, stack_rows
from anytime_lab.tree import Leaf, Tree, pack

BUDGETS, SUMMARIES, PROMPT, SUMMARY, ROWS = [24, 48, 72, 96], 4, 30, 13, 4
SETTINGS = {"output_dir": "unused", "bf16": False}


def planned(**options):
    """The plan of `preflight` with these options, for a file of twenty short problems."""
    defaults = {name[2:]: about.get("default") for name, about in PREFLIGHT.items()}
    task = {"task": str(NOTEBOOKS.parent / "experiments/sums.jsonl")}
    return make_plan(Namespace(**defaults | task | {"settings": SETTINGS} | options))


@pytest.fixture(scope="module")
def measured():
    """The embedded model, a micro-batch of the longest trees, and the plan of the same."""
    tok, model = load_tokenizer("embedded"), load_model("embedded", device="cpu")
    add_fused_lm_head(model, temperature=1.0, outputs=("log_probs", "entropy"))
    backend, _ = choose_backend(model)
    tokens = resolve_tokens(tok)

    def ids(count):
        return tuple(torch.randint(20, 200, (count,)).tolist())

    def tree():
        leaves = tuple(
            Leaf(b, tokens.cut_ids, ids(SUMMARY), (-1.0,) * SUMMARY, False)
            for b in BUDGETS for _ in range(SUMMARIES)
        )  # fmt: skip
        return Tree(ids(PROMPT), ids(96), (-1.0,) * 96, "length", leaves)

    trees = [tree() for _ in range(ROWS)]
    packed = [pack(one) for one in trees]
    rows = stack_rows(packed, torch.device("cpu"))
    batch = torch.tensor([[*t.prompt, *p.ids] for t, p in zip(trees, packed, strict=True)])
    settings = {"num_summaries": SUMMARIES, "max_summary_tokens": len(tokens.cut_ids) + SUMMARY}
    settings |= SETTINGS | {"gradient_checkpointing": False}
    plan = planned(budgets=BUDGETS, settings=settings, device="a100", dtype="float32")
    plan = dataclasses.replace(plan, prompts=(PROMPT,))
    costs = plan.costs()
    assert sum(sum(p.trained) for p in packed) == ROWS * costs.trained
    assert batch.shape == (ROWS, costs.packed)  # tokens are exact

    def run():
        return score_rows(model, backend, batch, torch.ones_like(batch), rows).log_probs.sum()

    return model, run, plan


def test_parameters_are_counted_without_weights(measured):
    model, _, plan = measured
    assert plan.size.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("checkpointing", "tolerance"), [(False, 0.02), (True, 0.1)])
def test_flops_are_those_that_torch_counts(measured, checkpointing, tolerance):
    model, run, plan = measured
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            loss = run()
            forward = counter.get_total_flops()
            loss.backward()
        costs = dataclasses.replace(plan, checkpointing=checkpointing).costs()
        assert ROWS * plan.costs().update / 3 == pytest.approx(forward, rel=0.001)
        total = counter.get_total_flops()
        assert ROWS * costs.update == pytest.approx(total, rel=tolerance)
    finally:
        model.gradient_checkpointing_disable()
        model.zero_grad()


def test_activations_are_those_that_autograd_keeps(measured):
    model, run, plan = measured
    kept, alive = {}, []
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)  # or its place would be taken by another
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    found = sum(size for place, size in kept.items() if place not in own)
    assert ROWS * plan.costs().activations == pytest.approx(found, rel=0.15)


def test_standing_memory_is_weights_gradients_and_two_moments(measured):
    model, run, plan = measured
    optimizer = torch.optim.AdamW(model.parameters())
    run().backward()
    optimizer.step()
    found = sum(p.nbytes for p in model.parameters())
    found += sum(p.grad.nbytes for p in model.parameters())
    found += sum(v.nbytes for s in optimizer.state.values() for v in s.values() if v.ndim)
    used = planned(preset="grpo", budgets=BUDGETS, device="a100", dtype="float32").memory
    weights, states, *_ = used.values()
    assert weights + states == pytest.approx(found, rel=0.001)
    model.zero_grad()


# --- plans ---------------------------------------------------------------------------------------

WEIGHTS = "memory a device: weights"
LARGE = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 32,
         "steps_per_generation": 64, "max_steps": 100}  # fmt: skip


def published(layers=28, hidden=1536, inner=8960, heads=12, **settings):
    """Qwen2 of 1.5B parameters, as a configuration only, and the published schedule."""
    from transformers import Qwen2Config

    config = Qwen2Config(
        vocab_size=151_936, hidden_size=hidden, intermediate_size=inner,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=2,
        max_position_embeddings=131_072, tie_word_embeddings=False,
    )  # fmt: skip
    return config, SETTINGS | LARGE | settings


def plan(config, settings, **options):
    """The plan of such a run on eight devices."""
    options |= {"settings": settings, "budgets": [2000, 4000, 6000, 8000]}
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        load_tokenizer("embedded").save_pretrained(folder)
        return planned(model=folder, device="a100", devices=8, **options)


def test_tokens_and_steps_are_those_of_the_schedule():
    one = plan(*published())  # from a configuration only
    assert one.size.parameters == pytest.approx(1.78e9, rel=0.01)
    assert one.trees == 512 and one.updates == 2 and one.steps == 100
    rows = {what: (step, whole) for what, step, whole in report(one)}
    assert rows["thinkings"] == ("256", "25,600")
    assert rows["thinking tokens"] == (f"{256 * 8000:,}", f"{25_600 * 8000:,}")
    assert rows["prompts without variance"] == ("unknown", "give --records")
    seen = Observed((100, 200), 1.0, 12.0, math.nan, True)
    rows = {what: told for what, *told in report(dataclasses.replace(one, observed=seen))}
    assert rows["prompts without variance"] == ["unknown", "nothing in the records is graded"]
    epoch = plan(*published(max_steps=-1, num_train_epochs=1))
    assert epoch.problems == 20
    assert dataclasses.replace(epoch, problems=40_315).steps == 40_315 // 64 * 2


def test_what_does_not_fit_is_refused_with_what_would():
    rows = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8,
            "steps_per_generation": 16}  # fmt: skip
    config, args = published(gradient_checkpointing=False, **rows)
    told = refusals(plan(config, args))
    assert any("GiB; it has 74.5" in reason and "It would fit with" in reason for reason in told)
    assert any("gradient_checkpointing=True" in reason for reason in told)
    fixed = published(gradient_checkpointing=True, rollout_batch_size=8, **rows)
    assert not [r for r in refusals(plan(*fixed)) if "one device needs" in r]


def test_seven_billion_need_their_weights_shared_out():
    big = {"layers": 28, "hidden": 3584, "inner": 18_944, "heads": 28}
    config, args = published(gradient_checkpointing=True, rollout_batch_size=4, **big)
    whole = plan(config, args, dtype="float32")
    assert whole.size.parameters == pytest.approx(7.6e9, rel=0.02)
    assert "ZeRO-3 or FSDP" in "\n".join(refusals(whole))
    shared = plan(config, args, dtype="float32", sharding="zero3")
    assert shared.memory[WEIGHTS] == pytest.approx(whole.memory[WEIGHTS] / 8)
    assert shared.fits
    adapter = plan(config, args, trainable=40_000_000)
    assert adapter.memory["gradients and optimizer"] < 1 * GIB and adapter.fits


def test_context_and_disk_are_checked_too():
    config, args = published(gradient_checkpointing=True, rollout_batch_size=8)
    config.max_position_embeddings = 8000
    told = "\n".join(refusals(plan(config, args)))
    assert "positions of 8,000. Set the largest budget to" in told
    config, args = published(rollout_batch_size=8, max_steps=100_000, save_steps=1)
    assert "Set save_total_limit=2" in "\n".join(refusals(plan(config, args)))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Records of a tiny random model on six problems."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    inner, killable.quiet = killable.quiet, contextlib.nullcontext
    try:
        killable.evaluate_tiny(folder)
    finally:
        killable.quiet = inner
    return folder


def test_records_tell_lengths_ends_and_prompts_that_teach_nothing(evaluated):
    from anytime_lab.store.records import read_records

    group = {"output_dir": "unused", "num_generations": 2, "per_device_train_batch_size": 4}
    group |= {"max_summary_tokens": 6, "max_steps": 3}
    one = planned(budgets=[3, 6], settings=group, records=evaluated)
    records = read_records(evaluated)
    thinkings = records.drop_duplicates(["problem_id", "sample"])
    assert one.observed.finished == (thinkings.thinking_end != "length").mean()
    assert one.costs().thinking == pytest.approx(thinkings.thinking_tokens.mean())
    last = records[records.budget == 6].groupby("problem_id", observed=True).score
    assert one.observed.flat == (last.nunique() == 1).mean() and one.observed.exact
    rows = {what: step for what, step, _ in report(one)}
    assert rows["thinkings finished before the end"].endswith("%")
    with pytest.raises(ValueError, match="stop at 6 tokens(.|\n)*Evaluate with budgets up to 96"):
        planned(preset="grpo", records=evaluated)


def test_groups_without_variance_are_counted_over_all_ways_to_draw_them(tmp_path):
    right = [[[[1]], [[1]], [[0]], [[0]]], [[[1]], [[1]], [[1]], [[1]]]]
    write_run(tmp_path, right, budgets=(8,))
    # Of the first problem 2 of the 6 pairs are equal; of the second all are.
    for group, flat, exact in ((2, (1 / 3 + 1) / 2, True), (8, (2 / 2**8 + 1) / 2, False)):
        seen = observe(tmp_path, 8, group)
        assert (seen.flat, seen.exact) == (pytest.approx(flat), exact)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ([], 0, "optimiser steps"),
        (["--device", "a100", "--budgets", "4000000"], 1, "Refused: one device needs"),
        (["--budgets", "48", "24"], 2, "Sort them, shortest first"),
        (["--budgets", "900", "1000"], 1, "Set the largest budget to"),
    ],
)
def test_the_command_prints_and_refuses(capsys, tmp_path, arguments, status, says):
    settings = {"num_generations": 8, "per_device_train_batch_size": 8, "max_steps": 5,
                "max_summary_tokens": 16, "output_dir": str(tmp_path)}  # fmt: skip
    assert main(["preflight", "--settings", json.dumps(settings), *arguments]) == status
    told = capsys.readouterr()
    assert says in told.out + told.err
