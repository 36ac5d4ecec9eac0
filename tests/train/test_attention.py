"""Packed trees by segments, by a dense mask and by unrolled rows: the same numbers in fp32."""

import itertools
import types

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    NemotronConfig,
    NemotronForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

from anytime_lab.engines.attention import BACKEND, lean_rows, tree_attention_forward, tree_plan
from anytime_lab.engines.hf import why_not_trees
from anytime_lab.prompts import COUNTDOWN, resolve_tokens
from anytime_lab.train.scoring import choose_backend, score_rows, stack_rows
from anytime_lab.tree import Leaf, Tree, pack, tree_mask, tree_positions

NO_MASK = torch.ones(1, 1, 1, 1, dtype=torch.bool)
TOKENS = resolve_tokens(tiny.tokenizer(), COUNTDOWN)
SMALL = {
    "vocab_size": 211,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
MODELS = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=16)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
}
BACKENDS = ("segmented", "dense", "unrolled")


def model_of(name, checkpointing=False, lora=False):
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    add_fused_lm_head(model, temperature=0.8, outputs=("log_probs", "entropy"))
    if lora:
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(model, config)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if lora:
            model.enable_input_require_grads()
    return model.train()


def batch(padded=True, budgets=(4, 8, 12), summaries=2):
    """Trees that end in every way, their prompts padded on the left or all of one length."""
    lengths = (3, 7, 5, 1, 6, 2, 4, 7) if padded else (4,) * 8
    prompts = [list(range(100, 100 + n)) for n in lengths]
    trees = tiny.random_trees(prompts, list(budgets), summaries, TOKENS, seed=2)
    packed = [pack(tree) for tree in trees]
    rows = stack_rows(packed, torch.device("cpu"))
    columns, width = rows.leaf.shape[1], max(lengths)
    ids = [
        [0] * (width - len(p)) + p + row.ids + [0] * (columns - len(row.ids))
        for p, row in zip(prompts, packed, strict=True)
    ]
    mask = [
        [0] * (width - len(p)) + [1] * (len(p) + len(row.ids)) + [0] * (columns - len(row.ids))
        for p, row in zip(prompts, packed, strict=True)
    ]
    return torch.tensor(ids), torch.tensor(mask), rows


def run(model, backend, padded=True, **layout):
    """Log-probs, entropies, a loss that weighs every token differently, and its gradients."""
    ids, mask, rows = batch(padded, **layout)
    assert choose_backend(model, backend, 0.8)[0] == backend
    scored = score_rows(model, backend, ids, mask, rows)
    weights = torch.linspace(-1, 1, rows.trained.numel()).view_as(rows.trained)
    loss = (scored.log_probs * weights * rows.trained).sum() + scored.entropy.sum() / 100
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    trained = rows.trained.bool()
    assert scored.log_probs[trained].abs().min() > 0
    return scored.log_probs * rows.trained, scored.entropy * rows.trained, loss, gradients


def assert_same_run(first, second):
    for a, b in zip(first[:3], second[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert first[3].keys() == second[3].keys() != set()
    largest = max(g.abs().max() for g in first[3].values())
    for name, gradient in first[3].items():
        torch.testing.assert_close(
            gradient, second[3][name], rtol=0, atol=1e-5 * float(largest), msg=name
        )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_packed_is_dense_is_unrolled(name, padded, checkpointing):
    runs = [run(model_of(name, checkpointing), backend, padded) for backend in BACKENDS]
    assert_same_run(runs[2], runs[0])
    assert_same_run(runs[2], runs[1])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_packed_is_unrolled_in_half_precision(name, padded):
    ids, mask, rows = batch(padded)
    told = {}
    for dtype, backend in itertools.product(("autocast", "bfloat16"), ("segmented", "unrolled")):
        model = model_of(name)
        model = model.bfloat16() if dtype == "bfloat16" else model
        assert choose_backend(model, backend, 0.8)[0] == backend
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
            told[dtype, backend] = score_rows(model, backend, ids, mask, rows).log_probs.float()
    for dtype in ("autocast", "bfloat16"):
        apart = (told[dtype, "segmented"] - told[dtype, "unrolled"])[rows.trained.bool()].abs()
        assert apart.mean() < 5e-3


def test_a_plan_serves_states_of_another_precision():
    ids, mask, rows = batch()
    prompt_mask = mask[:, : -rows.leaf.shape[1]]
    query, *rest = (torch.randn(len(ids), heads, ids.shape[1], 16) for heads in (4, 2, 2))
    module = types.SimpleNamespace(num_key_value_groups=2)
    whole, half = (
        tree_plan(rows.leaf, rows.branch, prompt_mask, dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    told = [tree_attention_forward(module, query, *rest, None, tree=p)[0] for p in (whole, half)]
    assert told[0].equal(told[1])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_adapters_get_the_same_gradients(name, checkpointing):
    runs = [run(model_of(name, checkpointing, lora=True), backend) for backend in BACKENDS]
    assert all("lora" in key for key in runs[0][3])
    assert_same_run(runs[2], runs[0])
    assert_same_run(runs[2], runs[1])


@pytest.mark.parametrize(
    ("budgets", "summaries"), [((1,), 1), ((12,), 1), ((12,), 3), ((2, 3, 12), 1)]
)
def test_any_number_of_budgets_and_summaries(budgets, summaries):
    layout = {"budgets": budgets, "summaries": summaries}
    runs = [run(model_of("qwen3"), backend, **layout) for backend in BACKENDS]
    assert_same_run(runs[2], runs[0])
    assert_same_run(runs[2], runs[1])


def test_trunks_without_leaves_are_plain_causal_rows():
    model = model_of("llama")
    choose_backend(model, "segmented", 0.8)
    ids = torch.randint(10, 90, (2, 9))
    prompt, leaf = torch.ones(2, 3), torch.full((2, 6), -1)
    branch = torch.arange(6).repeat(2, 1)
    tree = model(
        input_ids=ids,
        attention_mask=NO_MASK,
        position_ids=tree_positions(leaf, branch, prompt),
        tree=tree_plan(leaf, branch, prompt),
    )
    torch.testing.assert_close(tree.logits, model(input_ids=ids).logits, rtol=1e-5, atol=1e-5)


def test_without_a_tree_the_backend_is_sdpa():
    model = model_of("qwen3").eval()
    ids = torch.randint(10, 90, (3, 8))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1] * 8, [0] * 5 + [1] * 3])
    before = model(input_ids=ids, attention_mask=mask).logits
    made = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
    choose_backend(model, "segmented", 0.8)
    assert model.config._attn_implementation == BACKEND
    after = model(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(before[mask.bool()], after[mask.bool()])
    again = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
    assert torch.equal(made, again)


def test_leaves_do_not_see_each_other_nor_the_trunk_behind_their_cut():
    model = model_of("qwen3").eval()
    choose_backend(model, "segmented", 0.8)
    ids, mask, rows = batch()
    before = score_rows(model, "segmented", ids, mask, rows).log_probs
    other = ids.clone()
    columns = rows.leaf.shape[1]
    first = rows.leaf == 0
    behind = (rows.leaf == -1) & (rows.branch >= 4)  # the first budget cuts at 4
    other[:, -columns:][behind] = 99
    after = score_rows(model, "segmented", other, mask, rows).log_probs
    assert torch.equal(before[first], after[first])
    assert not torch.equal(before[rows.leaf == 5], after[rows.leaf == 5])


def test_eager_attention_takes_the_dense_mask():
    eager, sdpa = model_of("qwen2"), model_of("qwen2")
    eager.set_attn_implementation("eager")
    chosen, reason = choose_backend(eager, "auto", 0.8)
    assert (chosen, "eager" in reason) == ("dense", True)
    assert_same_run(run(sdpa, "unrolled"), run(eager, "dense"))


def test_what_cannot_attend_over_trees_is_unrolled_and_says_why():
    windowed = MistralForCausalLM(MistralConfig(**SMALL, sliding_window=8))
    add_fused_lm_head(windowed, temperature=1.0)
    assert "sliding window" in why_not_trees(windowed)
    chosen, reason = choose_backend(windowed)
    assert (chosen, "sliding" in reason) == ("unrolled", True)
    for name in ("segmented", "dense"):
        with pytest.raises(ValueError, match="sliding"):
            choose_backend(windowed, name)
    capped = Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8))
    add_fused_lm_head(capped, temperature=1.0)
    assert choose_backend(capped)[0] == "unrolled"


def test_a_model_whose_logits_trls_head_does_not_know_is_refused():
    torch.manual_seed(0)
    config = RecurrentGemmaConfig(**SMALL, lru_width=32, attention_window_size=8, head_dim=8)
    config.logits_soft_cap = 2.0  # applied after the last layer, and not by TRL's head
    capped = RecurrentGemmaForCausalLM(config)
    ids = torch.arange(3)[None]
    for model, known in ((capped, False), (model_of("qwen3"), True)):
        if not known:
            add_fused_lm_head(model, temperature=0.8)
        model.lm_head.weight.data.mul_(50)
        with torch.no_grad():
            plain = (model.eval()(input_ids=ids).logits / 0.8).log_softmax(-1)[0, :-1]
            fused = model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs[0]
        same = torch.allclose(plain.gather(1, ids[0, 1:, None])[:, 0], fused, atol=1e-4)
        assert same is known
        if known:
            choose_backend(model, "auto", 0.8)
        else:
            with pytest.raises(ValueError, match="RecurrentGemma(.|\n)*another architecture"):
                choose_backend(model, "auto", 0.8)


def test_a_model_that_drops_the_plan_on_the_way_takes_the_dense_mask():
    config = NemotronConfig(**SMALL, head_dim=8)
    torch.manual_seed(0)
    model = NemotronForCausalLM(config)
    add_fused_lm_head(model, temperature=0.8, outputs=("log_probs", "entropy"))
    chosen, reason = choose_backend(model, "auto", 0.8)
    assert (chosen, "no more than a mask" in reason) == ("dense", True)
    with pytest.raises(ValueError, match="no more than a mask"):
        choose_backend(model, "segmented", 0.8)
    other = NemotronForCausalLM(config)
    other.load_state_dict(model.state_dict())
    add_fused_lm_head(other, temperature=0.8, outputs=("log_probs", "entropy"))
    assert_same_run(run(other, "unrolled"), run(model, "dense"))


def test_a_backend_that_gives_other_numbers_is_passed_over_with_a_sentence():
    def forget(backbone, given, named):  # a leaf would stand behind all others
        return given, {**named, "position_ids": None}

    model = model_of("qwen3")
    model.model.register_forward_pre_hook(forget, with_kwargs=True)
    chosen, reason = choose_backend(model, "auto", 0.8)
    assert chosen == "unrolled" and model.config._attn_implementation == "sdpa"
    assert reason.startswith("log-probs of Qwen3ForCausalLM by dense trees are off by 0.")
    with pytest.raises(ValueError, match="segmented' cannot run this model: log-probs of Qwen3"):
        choose_backend(model, "segmented", 0.8)
    assert "two short trees are scored" in choose_backend(model_of("qwen3"), "dense", 0.8)[1]


def test_a_mask_that_nobody_meant_is_refused():
    model = model_of("llama")
    choose_backend(model, "segmented", 0.8)
    ids = torch.randint(10, 90, (1, 5))
    with pytest.raises(RuntimeError, match="unrolled"):
        model(input_ids=ids, attention_mask=NO_MASK)  # the plan got lost


def test_the_dense_mask_agrees_with_the_plan():
    _, mask, rows = batch()
    prompt_mask = mask[:, : -rows.leaf.shape[1]]
    plan = tree_plan(rows.leaf, rows.branch, prompt_mask)
    dense = tree_mask(rows.leaf, rows.branch, prompt_mask)[:, 0]
    width = prompt_mask.shape[1]
    at = 0
    for segment in plan.segments:
        count, keyed = segment.shape[2:]
        columns = plan.leaves[:, at : at + count]
        at += count
        for b in range(len(mask)):
            for n, column in enumerate(columns[b].tolist()):
                if column < width:
                    continue  # padding of the segment
                keys = [*range(keyed - count), *columns[b].tolist()]
                added = segment[b, 0, n].tolist()
                seen = {k for k, add in zip(keys, added, strict=True) if add == 0}
                assert seen == set(dense[b, column].nonzero().squeeze(1).tolist())
    assert at == plan.leaves.shape[1] > 0


def test_forced_text_is_computed_once_a_cut_and_no_last_token_of_a_leaf():
    def leaf(cut, forced, summary):
        return Leaf(cut, forced, summary, (0.0,) * len(summary), True)

    made = [
        [leaf(2, (7, 8), (20, 21)), leaf(2, (7, 8), (22,)), leaf(2, (7, 9), (20, 23, 24)),
         leaf(5, (7, 8), (25, 26)), leaf(5, (7, 8), (25,))],
        [leaf(3, (9,), (20, 21)), leaf(3, (9,), (22,)), leaf(3, (9, 7), (30, 31)),
         leaf(3, (9, 7), (32,)), leaf(3, (9, 7), (33,))],
    ]  # fmt: skip
    trees = [Tree((1, 2), (40, 41, 42, 43, 44), (0.0,) * 5, "length", tuple(m)) for m in made]
    rows = stack_rows([pack(tree) for tree in trees], torch.device("cpu"))
    ids = [[*tree.prompt, *pack(tree).ids] for tree in trees]
    ids = torch.tensor([row + [0] * (max(map(len, ids)) - len(row)) for row in ids])
    lean = lean_rows(ids[:, 2:], *rows)
    # Trunk; then of each leaf the forced text where it is new at its cut, and all but its end.
    own = [[[1, 1, 1, 0], [0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0]],
           [[1, 1, 0], [0, 0], [1, 1, 1, 0], [1, 1, 0], [0, 0, 0]]]  # fmt: skip
    # The last two leaves of the second row are a segment of their own: the first row's cuts differ.
    told = [[1] * 5 + [fed for one in row for fed in one] for row in own]
    assert [row[: len(want)] for row, want in zip(lean.fed.long().tolist(), told, strict=True)] == (
        told
    )
    scored, mask = {}, (torch.arange(ids.shape[1]) < torch.tensor([[26], [20]])).long()
    for backend in ("segmented", "unrolled"):
        model = model_of("qwen2")
        choose_backend(model, backend, 0.8)
        scored[backend] = score_rows(model, backend, ids, mask, rows).log_probs * rows.trained
    torch.testing.assert_close(scored["segmented"], scored["unrolled"], rtol=1e-5, atol=1e-5)
