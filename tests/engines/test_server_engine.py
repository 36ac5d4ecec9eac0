"""Evaluation through a completions server, stood in for by a transformers model on loopback."""

import contextlib

import families
import pytest
import tiny
from completions_server import serving
from tiny import build

from anytime_lab.engines.base import Sampling
from anytime_lab.engines.hf import HFEngine
from anytime_lab.engines.load import load_engine
from anytime_lab.engines.server import ServerEngine
from anytime_lab.engines.thoughts import ThinkingError
from anytime_lab.prompts import COUNTDOWN, prompt_ids, resolve_tokens

TOK = tiny.tokenizer()
TOKENS = resolve_tokens(TOK, COUNTDOWN)
PROMPTS = [prompt_ids(p, TOK, COUNTDOWN) for p in tiny.problems()["prompt"]]
BUDGETS = (3, 5, 20)
MODEL = build()  # its greedy thinkings end in every way


@contextlib.contextmanager
def served(model=MODEL, tokens=TOKENS, **behaviour):
    with serving(model, tokens, **{"served": ("tiny",), "most": 256, **behaviour}) as told:
        yield told


@pytest.mark.parametrize("share", [False, True])
def test_greedy_trees_of_a_server_are_those_of_its_model(share):
    sampling = Sampling(temperature=0, max_summary_tokens=6)
    expected = HFEngine(MODEL, TOKENS).sample_trees(PROMPTS, BUDGETS, 2, sampling, share_cuts=share)
    with served() as (url, told):
        found = ServerEngine(url, TOKENS).sample_trees(
            PROMPTS, BUDGETS, 2, sampling, share_cuts=share
        )
    assert len({len(tree.thinking) for tree in expected}) > 1
    for one, two in zip(found, expected, strict=True):
        assert (one.prompt, one.thinking, one.end) == (two.prompt, two.thinking, two.end)
        assert one.logprobs == pytest.approx(two.logprobs, abs=1e-4)
        for a, b in zip(one.leaves, two.leaves, strict=True):
            assert (a.cut, a.forced, a.summary, a.finished) == (
                b.cut, b.forced, b.summary, b.finished,
            )  # fmt: skip
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    assert {body["n"] for body in told.asked} == {1}  # greedy summaries are all alike


def test_the_seed_decides_and_every_filter_is_told():
    sampling = Sampling(max_summary_tokens=5)
    with served() as (url, told):
        engine = ServerEngine(url, TOKENS, concurrency=4)
        first = engine.sample_trees(PROMPTS[:2] * 2, BUDGETS, 3, sampling, seed=7)
        assert engine.sample_trees(PROMPTS[:2] * 2, BUDGETS, 3, sampling, seed=7) == first
        assert engine.sample_trees(PROMPTS[:2] * 2, BUDGETS, 3, sampling, seed=8) != first
    assert first[0].thinking != first[2].thinking  # two thinkings of one problem
    summaries = [leaf.summary for leaf in first[0].leaves]
    assert len(set(summaries)) > 1
    assert told.most_at_once <= 4
    neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert all(body | neutral == body and body["ignore_eos"] for body in told.asked)


def test_the_other_order_of_requests_changes_nothing():
    sampling = Sampling(max_summary_tokens=5)
    with served() as (url, _):
        many = ServerEngine(url, TOKENS, concurrency=8).sample_trees(
            PROMPTS[:4], BUDGETS, 2, sampling, seed=1
        )
        single = ServerEngine(url, TOKENS, concurrency=1).sample_trees(
            PROMPTS[:4], BUDGETS, 2, sampling, seed=1
        )
    assert many == single


def test_an_overload_passes_and_a_refusal_does_not(monkeypatch):
    monkeypatch.setattr("anytime_lab.engines.server.time.sleep", lambda _: None)
    sampling = Sampling(temperature=0, max_summary_tokens=3)
    with served(failures=[503, 429, 500]) as (url, told):
        ServerEngine(url, TOKENS, concurrency=1).sample_trees(PROMPTS[:1], [4], 1, sampling)
        assert told.failures == []
        told.failures += [503] * 3
        with pytest.raises(ThinkingError, match="503 too busy"):
            ServerEngine(url, TOKENS, concurrency=1, retries=2).sample_trees(
                PROMPTS[:1], [4], 1, sampling
            )
        told.failures += [400, 503]
        with pytest.raises(ThinkingError, match="400 too busy"):
            ServerEngine(url, TOKENS, concurrency=1).sample_trees(PROMPTS[:1], [4], 1, sampling)
        assert told.failures == [503]  # no second try of what is refused


def test_what_the_server_lacks_is_told(monkeypatch):
    monkeypatch.setattr("anytime_lab.engines.server.time.sleep", lambda _: None)
    sampling = Sampling(temperature=0, max_summary_tokens=3)
    with served(tells="text", served=("a", "b")) as (url, _):
        with pytest.raises(ThinkingError, match="serves 'a', 'b'; asked for 'c'"):
            ServerEngine(url, TOKENS, model="c")
        with pytest.raises(ThinkingError, match="serves 'a', 'b'; asked for its only one"):
            ServerEngine(url, TOKENS)
        engine = load_engine(url, "embedded", TOKENS, served_name="b")
        assert (engine.served_name, engine.context_length) == ("b", 256)
        with pytest.raises(ThinkingError, match="tells no token ids"):
            engine.sample_trees(PROMPTS[:1], [4], 1, sampling)
        with pytest.raises(ThinkingError, match="maximum context length is 256.*Lower the budgets"):
            engine.sample_trees(PROMPTS[:1], [400], 1, sampling)
    with pytest.raises(ThinkingError, match="no server answers"):
        ServerEngine(url, TOKENS, retries=1)


@pytest.mark.parametrize("raw", [True, False])
def test_log_probs_at_another_temperature_are_warned_of(caplog, raw):
    with served(raw=raw) as (url, told):
        engine = ServerEngine(url, TOKENS)
        for temperature in (1.0, 0.6, 0.6):
            engine.sample_trees(
                PROMPTS[:1], [3], 1, Sampling(temperature=temperature, max_summary_tokens=2), seed=0
            )
    assert caplog.text.count("--logprobs-mode processed_logprobs") == raw
    assert len(told.asked) == 2 * 3 + 2  # one look


def test_engines_are_known_by_name():
    with pytest.raises(ValueError, match='expected "hf", "vllm", or the URL'):
        load_engine("sglang", "embedded", TOKENS)
    assert isinstance(load_engine("hf", "embedded", TOKENS, batch_size=3), HFEngine)
    with pytest.raises(ValueError, match="logprobs_mode is 'raw_logprobs'; this engine needs"):
        load_engine("vllm", "embedded", TOKENS, logprobs_mode="raw_logprobs")


def test_a_marker_of_several_tokens_is_told_to_the_server_and_seen_in_its_tokens():
    tok = families.tokenizer("llama3")
    tokens = resolve_tokens(tok, {"think_close": "ba", "cut_suffix": "...ba"})
    model = families.model(tok, "abc", seed=3)
    prompts = [prompt_ids(f"{n} + 1?", tok, tokens.fmt) for n in range(8)]
    sampling = Sampling(temperature=0, max_summary_tokens=4)
    expected = HFEngine(model, tokens).sample_trees(prompts, BUDGETS, 1, sampling)
    with served(model=model, tokens=tokens) as (url, told):
        found = ServerEngine(url, tokens).sample_trees(prompts, BUDGETS, 1, sampling)
    assert {tree.end for tree in expected} >= {"closed", "length"}
    assert [(t.thinking, t.end) for t in found] == [(t.thinking, t.end) for t in expected]
    for one, two in zip(found, expected, strict=True):
        assert [leaf.summary for leaf in one.leaves] == [leaf.summary for leaf in two.leaves]
    thinks = [body for body in told.asked if body["stop"]]
    assert len(thinks) == len(prompts)
    assert all(b["stop"] == ["ba"] and b["include_stop_str_in_output"] for b in thinks)
