"""Leaves decoded on their trunk's cache against plain generate on each prefix."""

from dataclasses import replace

import families
import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from tiny import MODELS, SMALL, build, ending
from transformers import (
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)
from transformers.cache_utils import DynamicLayer

from anytime_lab.engines import hf
from anytime_lab.engines.base import Sampling, sample_tokens
from anytime_lab.engines.hf import (
    HFEngine,
    RoomyLayer,
    Trunks,
    _branches,
    sample_leaves,
    why_not_branching,
)
from anytime_lab.prompts import COUNTDOWN, prompt_ids, resolve_tokens

TOK = tiny.tokenizer()
TOKENS = resolve_tokens(TOK, COUNTDOWN)
PROMPTS = [prompt_ids(p, TOK, COUNTDOWN) for p in tiny.problems()["prompt"]]
BUDGETS = (3, 5, 20)
GREEDY = Sampling(temperature=0, max_summary_tokens=7)


def assert_same_trees(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert (a.prompt, a.thinking, a.end) == (b.prompt, b.thinking, b.end)
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
        for x, y in zip(a.leaves, b.leaves, strict=True):
            assert x.logprobs == pytest.approx(y.logprobs, abs=1e-4)
            assert replace(x, logprobs=()) == replace(y, logprobs=())


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager", "anytime_tree"])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_leaves_in_one_row_equal_plain_generate(name, attention, share):
    model = build(name, attention)
    fast = HFEngine(model, TOKENS).sample_trees(PROMPTS, BUDGETS, 2, GREEDY, share_cuts=share)
    plain = HFEngine(model, TOKENS, branches=False)
    plain = plain.sample_trees(PROMPTS, BUDGETS, 2, GREEDY, share_cuts=share)
    assert len({tree.end for tree in fast}) > 1
    assert len({len(tree.thinking) for tree in fast}) > 2
    assert_same_trees(fast, plain)


@pytest.mark.parametrize("attention", ["sdpa", "anytime_tree"])
@pytest.mark.parametrize("name", MODELS)
def test_many_leaves_attend_in_runs_and_equal_plain_generate(name, attention, monkeypatch):
    model, planned, budgets = build(name, attention), [], [*range(1, 45)]
    plan = hf.branch_plan

    def spied(sees, *rest):
        planned.append(plan(sees, *rest))
        assert sum(mask.shape[2] for mask in planned[-1].masks) == sees.shape[1]
        assert planned[-1].masks[0].shape[3] < sees.shape[2]
        return planned[-1]

    monkeypatch.setattr(hf, "branch_plan", spied)
    fast = HFEngine(model, TOKENS).sample_trees(PROMPTS, budgets, 1, GREEDY)
    assert planned and model.config._attn_implementation == attention
    plain = HFEngine(model, TOKENS, branches=False).sample_trees(PROMPTS, budgets, 1, GREEDY)
    assert len({tree.end for tree in fast}) > 1
    assert_same_trees(fast, plain)


def test_a_model_that_takes_no_other_keywords_samples_many_leaves():
    class Strict(type(build("qwen2"))):
        def forward(self, input_ids=None, attention_mask=None, position_ids=None,
                    past_key_values=None, use_cache=None, logits_to_keep=0):  # fmt: skip
            return super().forward(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
                past_key_values=past_key_values, use_cache=use_cache, logits_to_keep=logits_to_keep,
            )  # fmt: skip

    model = build("qwen2")
    trees = HFEngine(model, TOKENS).sample_trees(PROMPTS, [*range(1, 45)], 1, GREEDY)
    model.__class__ = Strict
    assert_same_trees(
        HFEngine(model, TOKENS).sample_trees(PROMPTS, [*range(1, 45)], 1, GREEDY), trees
    )


def test_attention_is_put_back_where_sampling_fails(monkeypatch):
    model = build()
    monkeypatch.setattr(hf, "branch_plan", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        HFEngine(model, TOKENS).sample_trees(PROMPTS, [*range(1, 45)], 1, GREEDY)
    assert model.config._attn_implementation == "sdpa"


def test_the_batch_size_changes_nothing_greedily():
    model = build()
    whole = HFEngine(model, TOKENS).sample_trees(PROMPTS, BUDGETS, 2, GREEDY)
    parts = HFEngine(model, TOKENS, batch_size=5).sample_trees(PROMPTS, BUDGETS, 2, GREEDY)
    assert_same_trees(whole, parts)


def test_rows_that_leave_the_batch_early_change_nothing():
    model = build()
    many = HFEngine(model, TOKENS).sample_trees(PROMPTS * 3, [40], 1, GREEDY)
    single = HFEngine(model, TOKENS, batch_size=1).sample_trees(PROMPTS, [40], 1, GREEDY)
    assert_same_trees(many, single * 3)


def test_sampled_logprobs_are_the_models_own():
    model = build()
    sampling = Sampling(temperature=0.7, max_summary_tokens=6)
    for tree in HFEngine(model, TOKENS).sample_trees(PROMPTS[:4], BUDGETS, 2, sampling, seed=3):
        expected = logps(model, tree.prompt, tree.thinking, 0.7)
        assert tree.logprobs == pytest.approx(expected, abs=1e-4)
        for leaf in tree.leaves:
            context = (*tree.prompt, *tree.thinking[: leaf.cut], *leaf.forced)
            expected = logps(model, context, leaf.summary, 0.7)
            assert leaf.logprobs == pytest.approx(expected, abs=1e-4)
            assert leaf.forced == TOKENS.forced(tree.end, leaf.cut, len(tree.thinking))


def logps(model, context, tokens, temperature):
    ids = torch.tensor([[*context, *tokens]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(context) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, ids[0, len(context) :, None])[:, 0].tolist()


def test_leaves_that_drew_the_same_tokens_are_one_node():
    node = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 1, 1, 1]])
    drawn = torch.tensor([[7, 7, 5, 7, 7], [3, 4, 3, 9, 9], [2, 2, 2, 2, 2]])
    goes_on = [[True, True, True, True, False], [False, True, True, True, False], [False] * 5]
    after, first = _branches(node, drawn, torch.tensor(goes_on))
    # by their nodes, then by the token; what has ended goes with the lowest that goes on
    assert after[:2].tolist() == [[1, 1, 0, 2, 0], [0, 1, 0, 2, 0]]
    assert len(set(after[2].tolist())) == 1
    assert first[:2].tolist() == [[2, 0, 3], [2, 1, 3]]
    assert first.shape == (3, 3) and first.max() < 5


def test_the_draws_of_a_leaf_do_not_depend_on_who_shares_its_column():
    # the second row's cuts are all different, so that in it no two leaves ever share one
    cuts = [[2, 2, 2, 5], [0, 1, 3, 4]]
    sampling = Sampling(max_summary_tokens=6)
    for seed in (0, 8, 9):  # of which no thinking has ended
        generator = torch.Generator().manual_seed(seed)
        trunks = Trunks(build(), TOKENS, PROMPTS[:2], sampling, generator)
        for _ in range(6):
            trunks.step()
        assert trunks.ends == ["", ""]
        state = generator.get_state()
        held = trunks.cache.get_seq_length()
        leaves = sample_leaves(trunks, cuts)
        assert trunks.cache.get_seq_length() == held
        generator.set_state(state)
        plain = [[drawn_alone(trunks, row, cut) for cut in own] for row, own in enumerate(cuts)]
        noise = [
            torch.empty(2, 4, trunks.logits.shape[-1]).exponential_(generator=generator)
            for _ in range(6)
        ]
        for row, column in ((row, column) for row in range(2) for column in range(4)):
            leaf, ids, values = leaves[row][column], [], []
            for step in range(len(leaf.summary)):
                logprobs = plain[row][column](ids).log_softmax(-1)
                ids.append(int((logprobs - noise[step][row, column].log()).argmax()))
                values.append(float(logprobs[ids[-1]]))
            assert leaf.summary == tuple(ids)
            assert leaf.logprobs == pytest.approx(values, abs=1e-4)


def drawn_alone(trunks, row, cut):
    """Logits after a leaf's tokens, by the model on that one sequence."""
    thinking = trunks.thinkings[row]
    forced = TOKENS.forced(trunks.ends[row] or "length", cut, TOKENS.kept(thinking))
    before = [*trunks.prompts[row], *thinking[:cut], *forced]
    with torch.no_grad():
        return lambda ids: trunks.model(torch.tensor([[*before, *ids]])).logits[0, -1].detach()


def test_a_seed_decides_everything_and_leaves_the_global_state_alone():
    engine = HFEngine(build(), TOKENS)
    sampling = Sampling(max_summary_tokens=5)
    state = torch.random.get_rng_state()
    first = engine.sample_trees(PROMPTS, BUDGETS, 1, sampling, seed=7)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(99)
    assert engine.sample_trees(PROMPTS, BUDGETS, 1, sampling, seed=7) == first
    assert engine.sample_trees(PROMPTS, BUDGETS, 1, sampling, seed=8) != first


def test_without_a_seed_the_global_state_decides():
    engine = HFEngine(build(), TOKENS)
    sampling = Sampling(max_summary_tokens=5)
    torch.manual_seed(4)
    first = engine.sample_trees(PROMPTS, BUDGETS, 1, sampling)
    assert engine.sample_trees(PROMPTS, BUDGETS, 1, sampling) != first
    torch.manual_seed(4)
    assert engine.sample_trees(PROMPTS, BUDGETS, 1, sampling) == first


@pytest.mark.parametrize("branches", [True, False])
def test_shared_cuts_repeat_the_summaries_past_the_end(branches):
    engine = HFEngine(build(), TOKENS, branches=branches)
    sampling, budgets = Sampling(max_summary_tokens=5), (3, 30, 40)
    shared, own = (
        engine.sample_trees(PROMPTS, budgets, 2, sampling, seed=7, share_cuts=share)
        for share in (True, False)
    )
    ended = [n for n, tree in enumerate(shared) if 3 < len(tree.thinking) < 30]
    assert ended and all(shared[n].leaves[2:4] == shared[n].leaves[4:] for n in ended)
    ended = [n for n, tree in enumerate(own) if 3 < len(tree.thinking) < 30]
    assert any(own[n].leaves[2:4] != own[n].leaves[4:] for n in ended)


def test_models_that_cannot_branch_take_plain_generate_and_say_so(caplog):
    model = ending(MistralForCausalLM(MistralConfig(**SMALL, sliding_window=8)))
    assert "sliding" in why_not_branching(model)
    with caplog.at_level("WARNING"):
        engine = HFEngine(model, TOKENS)
    assert "plain generate" in caplog.text
    trees = engine.sample_trees(PROMPTS[:3], BUDGETS, 2, Sampling(max_summary_tokens=4), seed=1)
    assert trees == engine.sample_trees(
        PROMPTS[:3], BUDGETS, 2, Sampling(max_summary_tokens=4), seed=1
    )
    assert all(len(tree.leaves) == 6 for tree in trees)


def tiny_rwkv():
    config = {"attention_hidden_size": 32, "context_length": 256, "pad_token_id": TOK.pad_token_id}
    return RwkvForCausalLM(RwkvConfig(**{**SMALL, **config}))


RECURRENT = {
    "rwkv": tiny_rwkv,  # takes no notice of the mask
    "mamba": lambda: MambaForCausalLM(MambaConfig(**SMALL, state_size=8)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4)),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_plain_generate_samples_what_the_model_says_without_padding(name):
    torch.manual_seed(2)
    model = ending(RECURRENT[name]())
    engine = HFEngine(model, TOKENS)
    prompts = PROMPTS[:4]
    assert len(set(map(len, prompts))) > 1
    sampling = Sampling(max_summary_tokens=4)
    for tree in engine.sample_trees(prompts, BUDGETS, 1, sampling, seed=1):
        parts = [(tree.prompt, tree.thinking, tree.logprobs)]
        for leaf in tree.leaves:
            prefix = (*tree.prompt, *tree.thinking[: leaf.cut], *leaf.forced)
            parts.append((prefix, leaf.summary, leaf.logprobs))
        for prefix, sampled, logprobs in parts:
            ids = torch.tensor([[*prefix, *sampled]])
            with torch.no_grad():
                told = model(input_ids=ids).logits[0, len(prefix) - 1 : -1].log_softmax(-1)
            own = told.gather(1, ids[0, len(prefix) :, None])[:, 0]
            assert logprobs == pytest.approx(own.tolist(), abs=1e-4)


@pytest.mark.parametrize("adapter", [False, True])
def test_plain_generate_takes_nothing_from_the_generation_config_of_a_checkpoint(adapter):
    model = ending(RECURRENT["mistral"]())
    config = model.generation_config
    config.repetition_penalty, config.suppress_tokens = 3.0, [TOKENS.close_id]
    kept = model
    if adapter:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).eval()
    for tree in HFEngine(model, TOKENS).sample_trees(PROMPTS[:2], BUDGETS, 1, GREEDY):
        ids = torch.tensor([[*tree.prompt, *tree.thinking]])
        with torch.no_grad():
            likeliest = model(input_ids=ids).logits[0, len(tree.prompt) - 1 : -1].argmax(-1)
        assert list(tree.thinking) == likeliest.tolist()
    assert kept.generation_config is config and model.generation_config.repetition_penalty == 3.0


def test_a_thinking_goes_on_after_its_answers_as_if_nothing_had_been_asked():
    engine = HFEngine(build(), TOKENS)
    (whole,) = engine.sample_trees([PROMPTS[2]], (4, 8), 3, GREEDY)
    trunks = engine.think(PROMPTS[2], GREEDY)
    heard = []
    for budget in (4, 8):
        while trunks.length < budget and not trunks.ends[0]:
            trunks.step()
        heard += engine.answers(trunks, 3)
    assert tuple(trunks.thinkings[0]) == whole.thinking
    assert [leaf.summary for leaf in heard] == [leaf.summary for leaf in whole.leaves]
    assert not trunks.logits.requires_grad


def test_the_model_is_left_in_its_mode():
    model = build().train()
    HFEngine(model, TOKENS).sample_trees(PROMPTS[:1], [3], 1, GREEDY)
    assert model.training


@pytest.mark.parametrize("shape", [(3, 50), (2, 7, 4096)])
def test_draws_are_those_of_exponential_noise(shape):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    one, other = (torch.Generator().manual_seed(2) for _ in range(2))
    for _ in range(3):  # a draw leaves the random state as the noise does
        noise = torch.empty(shape).exponential_(generator=other)
        wanted = (logits.log_softmax(-1) - noise.log()).argmax(-1)
        assert torch.equal(sample_tokens(logits, Sampling(), one)[0], wanted)


def test_filters_keep_what_they_say():
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log().repeat(4000, 1)
    generator = torch.Generator().manual_seed(0)

    def drawn(**settings):
        tokens, logprobs = sample_tokens(logits, Sampling(**settings), generator)
        assert logprobs.exp().tolist() == pytest.approx(
            torch.tensor([0.5, 0.25, 0.15, 0.1])[tokens].tolist(), rel=1e-5
        )
        return torch.bincount(tokens, minlength=4) / len(tokens)

    assert drawn().tolist() == pytest.approx([0.5, 0.25, 0.15, 0.1], abs=0.03)
    assert drawn(top_k=2).tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=0.03)
    assert drawn(top_p=0.6).tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=0.03)
    assert drawn(top_p=0.5).tolist() == [1, 0, 0, 0]
    assert drawn(min_p=0.25).tolist() == pytest.approx([5 / 9, 2.5 / 9, 1.5 / 9, 0], abs=0.03)
    greedy, _ = sample_tokens(logits[0], Sampling(temperature=0), None)
    assert greedy == 0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda e: e.sample_trees([[1]], [3, 2], 1, GREEDY), "increase"),
        (lambda e: e.sample_trees([[1]], [3], 0, GREEDY), "num_summaries"),
        (lambda e: e.sample_trees([[]], [3], 1, GREEDY), "empty"),
        (lambda e: HFEngine(e.model, TOKENS, batch_size=0), "batch_size"),
        (lambda e: Sampling(temperature=-1), "temperature"),
        (lambda e: Sampling(top_p=0), "top_p is 0; expected above 0 and at most 1"),
        (
            lambda e: Sampling(temperature="hot"),
            "temperature is .hot.; expected 0 .greedy. or more",
        ),
        (lambda e: Sampling(top_k=-1), "top_k"),
        (lambda e: Sampling(min_p=1), "min_p"),
        (lambda e: Sampling(max_summary_tokens=0), "max_summary_tokens"),
    ],
)
def test_bad_arguments_are_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call(HFEngine(build(), TOKENS))


def test_no_prompts_give_no_trees():
    assert HFEngine(build(), TOKENS).sample_trees([], [3], 1, GREEDY) == []


LLAMA3 = families.tokenizer("llama3")
SPELLED = {"think_close": "ba", "cut_suffix": "...ba"}  # letters that the model likes to write


@pytest.mark.parametrize("wanted", [SPELLED, "unmarked"], ids=["several tokens", "no marker"])
def test_thinkings_end_as_their_format_says_in_both_ways_of_sampling(wanted):
    model = families.model(LLAMA3, "abc", seed=3)
    tokens = resolve_tokens(LLAMA3, wanted)
    prompts = [prompt_ids(f"{n} + 1?", LLAMA3, tokens.fmt) for n in range(24)]
    for sampling in (GREEDY, Sampling(max_summary_tokens=5)):
        fast = HFEngine(model, tokens).sample_trees(prompts, BUDGETS, 2, sampling, seed=1)
        plain = HFEngine(model, tokens, branches=False)
        slow = plain.sample_trees(prompts, BUDGETS, 2, sampling, seed=1)
        if sampling is GREEDY:
            assert_same_trees(fast, slow)
        for tree in (*fast, *slow):
            text, turn_over = LLAMA3.decode(tree.thinking), tree.thinking[-1] in tokens.eos_ids
            assert not tokens.eos_ids & set(tree.thinking[:-1])
            if wanted == "unmarked":
                assert tree.end == ("closed" if turn_over else "length")
            else:
                assert text.count("ba") == (tree.end == "closed") == text.endswith("ba")
                assert turn_over == (tree.end == "eos")
            for leaf, budget in zip(tree.leaves[::2], BUDGETS, strict=True):
                kept = len(tree.thinking) - (wanted == "unmarked" and turn_over)
                assert leaf.cut == min(budget, kept)
                assert leaf.forced == tokens.forced(tree.end, leaf.cut, kept)
    ends = {tree.end for tree in slow}
    assert ends == ({"closed", "length"} if wanted == "unmarked" else {"closed", "eos", "length"})


def test_a_turn_ends_by_what_the_generation_config_names():
    model = families.model(LLAMA3, "abc")
    end = LLAMA3.convert_tokens_to_ids("<|start_header_id|>")
    model.generation_config.eos_token_id = [LLAMA3.eos_token_id, end]
    with torch.no_grad():
        model.get_output_embeddings().bias[end] = 90.0
    engine = HFEngine(model, resolve_tokens(LLAMA3))
    (tree,) = engine.sample_trees([[1, 2]], [8], 1, GREEDY)
    assert tree.thinking == (end,) and tree.end == "closed"
    assert tree.leaves[0].cut == 0 and tree.leaves[0].summary == (end,)
    assert tree.leaves[0].finished


def test_a_cache_with_room_holds_what_one_without_holds(monkeypatch):
    monkeypatch.setattr(RoomyLayer, "ROOM", 4)
    roomy, plain = RoomyLayer(), DynamicLayer()
    made = torch.Generator().manual_seed(0)
    for step in range(40):
        rows = 3 if step < 20 else 2
        new = torch.randn(2, rows, 2, step % 7 + 1, 5, generator=made)
        for told, kept in zip(roomy.update(*new), plain.update(*new), strict=True):
            assert told.equal(kept)
        if step % 3 == 2:  # what has branched off goes again
            roomy.crop(-(step % 5 + 1))
            plain.crop(-(step % 5 + 1))
        if step == 19:
            roomy.batch_select_indices(torch.tensor([2, 0]))
            plain.batch_select_indices(torch.tensor([2, 0]))
    assert roomy.get_seq_length() == plain.get_seq_length() == roomy.keys.shape[2] > 50
