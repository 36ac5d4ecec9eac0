"""A thinking that is asked in the middle, against the same thinking left alone."""

import contextlib
import threading
from dataclasses import replace

import families
import pytest
import torch
from completions_server import serving
from made_thoughts import QUESTION, context_for, think_on
from tiny import SMALL, ending
from transformers import MistralConfig, MistralForCausalLM

from anytime_lab.engines.base import Sampling
from anytime_lab.engines.hf import HFEngine
from anytime_lab.engines.load import load_thinker
from anytime_lab.engines.server import ServerEngine
from anytime_lab.engines.thoughts import Thinker, ThinkingError
from anytime_lab.prompts import PieceReader, prompt_ids, resolve_tokens


@pytest.fixture(scope="module")
def thinker():
    return load_thinker("embedded", max_summary_tokens=24)


def logprobs(thought):
    return thought._thinking.logprobs[0]


def whole(thinker, temperature, limit=90):
    thought = thinker.think(QUESTION, temperature, seed=5)
    think_on(thought, limit)
    return thought


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_thinking_asked_at_many_tokens_equals_the_one_left_alone(thinker, temperature):
    alone = whole(thinker, temperature)
    asked = thinker.think(QUESTION, temperature, seed=5)
    for n in range(90):
        if n in (0, 1, 7, 8, 40):
            asked.answers(1 + n % 4)
        asked.step()
    assert asked.ids == alone.ids
    assert logprobs(asked) == pytest.approx(logprobs(alone), abs=1e-4)
    assert (asked.text, asked.length, asked.end) == (alone.text, alone.length, alone.end)


def test_summaries_depend_on_the_seed_and_the_length_alone(thinker):
    asked = thinker.think(QUESTION, 1.0, seed=5)
    think_on(asked, 10).answers(4)
    late = think_on(asked, 10).answers(4)
    once = think_on(thinker.think(QUESTION, 1.0, seed=5), 20).answers(4)
    assert [a.text for a in late] == [a.text for a in once]
    assert [a.logprob for a in late] == pytest.approx([a.logprob for a in once], abs=1e-4)
    assert [a.text for a in asked.answers(4)] == [a.text for a in once]


def test_no_token_of_a_thinking_is_computed_twice(thinker):
    engine = thinker.engine
    fed = []
    hook = engine.model.register_forward_pre_hook(
        lambda _model, _args, kwargs: fed.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        thought = thinker.think(QUESTION, 1.0, seed=5)
        prompt = len(
            prompt_ids(QUESTION, thinker.engine.tokens.tokenizer, thinker.engine.tokens.fmt)
        )
        assert fed == [prompt]
        think_on(thought, 30)
        assert fed == [prompt] + [1] * 30
        before = len(fed)
        leaves = engine.answers(thought._open(), 4, seed=1)
        # the forced text, then one token of each different beginning that goes on
        forced, *steps = fed[before:]
        assert forced == len(engine.tokens.cut_ids)
        beginnings = [
            {leaf.summary[:n] for leaf in leaves if len(leaf.summary) > n}
            for n in range(1, max(len(leaf.summary) for leaf in leaves))
        ]
        assert steps == [len(different) for different in beginnings]
        assert max(steps) > 1
        asked = len(fed)
        think_on(thought, 20)
        assert fed[asked:] == [1] * 20
    finally:
        hook.remove()


def test_the_text_is_what_the_tokens_say_and_ends_with_its_marker(thinker):
    thought = thinker.think([{"role": "user", "content": "Reach 42 with 12, 16, 14."}], 1.0, seed=0)
    pieces = []
    while not thought.end:
        pieces.append(thought.step())
    assert thought.end == "closed" and thought.text.endswith("</think>")
    ids = thought.ids
    assert thought.text == "".join(pieces) == thinker.engine.tokens.decode(ids)
    assert thought.step() == "" and thought.length == len(ids)  # past the end nothing is thought
    (answer,) = thought.answers(1)
    assert answer.forced == thinker.engine.tokens.fmt.header and answer.text.startswith("\\boxed{")


def test_an_answer_in_the_middle_closes_the_thinking_by_force(thinker):
    answer = think_on(thinker.think(QUESTION, 0.0), 5).answers(1)[0]
    assert answer.forced == thinker.engine.tokens.fmt.cut_suffix + thinker.engine.tokens.fmt.header
    assert answer.logprob < 0 and answer.tokens > 1 and answer.finished


def test_a_full_context_ends_the_thinking_and_still_answers(thinker):
    short = Thinker(thinker.engine, Sampling(max_summary_tokens=980))
    thought = short.think(QUESTION, 1.0, seed=5)
    room = thought.room
    assert 0 < room < 30
    think_on(thought, room + 5)
    assert (thought.length, thought.end) == (room, "length")
    assert len(thought.answers(2)) == 2
    none = Thinker(thinker.engine, Sampling(max_summary_tokens=1010))
    with pytest.raises(ThinkingError, match="leave none to think"):
        none.think(QUESTION)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_cannot_branch_is_asked_by_completing_what_it_thought(thinker, temperature):
    torch.manual_seed(0)
    model = ending(MistralForCausalLM(MistralConfig(**SMALL, sliding_window=8)))
    asking = Thinker(HFEngine(model, thinker.engine.tokens), Sampling(max_summary_tokens=5))
    asked, alone = (asking.think(QUESTION, temperature, seed=5) for _ in range(2))
    answers = think_on(asked, 3).answers(3)
    think_on(asked, 17), think_on(alone, 20)
    assert (asked.ids, asked.text, asked.end) == (alone.ids, alone.text, alone.end)
    again = think_on(asking.think(QUESTION, temperature, seed=5), 3).answers(3)
    assert again == answers
    if temperature == 0:
        sampling = Sampling(temperature=0, max_summary_tokens=5)
        (tree,) = asking.engine.sample_trees([asked.prompt], [3, 20], 1, sampling)
        assert tree.thinking == tuple(asked.ids)
        assert answers[0].text == thinker.engine.tokens.decode(tree.leaves[0].summary)


def test_a_closed_thought_says_so(thinker):
    thought = thinker.think(QUESTION)
    thought.close()
    thought.close()
    for call in (thought.step, lambda: thought.answers(1)):
        with pytest.raises(ThinkingError, match="closed"):
            call()


def test_thoughts_in_several_threads_do_not_disturb_each_other(thinker):
    seeds = (0, 5, 6)  # long ones
    alone = [think_on(thinker.think(QUESTION, 1.0, seed), 24) for seed in seeds]
    thinker.engine.model.train()  # its mode is switched around each step
    made = [None] * 3

    def run(place):
        thought = thinker.think(QUESTION, 1.0, seeds[place])
        for n in range(24):
            thought.step()
            if n % 8 == place:
                thought.answers(2)
        made[place] = thought

    threads = [threading.Thread(target=run, args=(place,)) for place in range(3)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert thinker.engine.model.training
    finally:
        thinker.engine.model.eval()
    assert [m.text for m in made] == [a.text for a in alone]


class Bytes:
    """A tokenizer whose tokens are bytes: characters come in parts."""

    def decode(self, ids, **_):
        return bytes(ids).decode(errors="replace")


def test_characters_of_several_tokens_come_when_they_are_whole(thinker):
    said = "é→𝄞 a\ufffd b"
    reader = PieceReader(replace(thinker.engine.tokens, tokenizer=Bytes(), eos_ids=frozenset({-1})))
    pieces = [reader.read(byte) for byte in said.encode()]
    assert "".join(pieces) + reader.rest() == said
    assert pieces[:2] == ["", "é"] and pieces[5:9] == ["", "", "", "𝄞"]


SPELLED = {"think_close": "ba"}  # letters that the model likes to write, in two tokens


@pytest.mark.parametrize("way", ["cache", "prefixes", "server"])
@pytest.mark.parametrize("wanted", [SPELLED, "unmarked"], ids=["several tokens", "no marker"])
def test_a_thinking_ends_and_is_asked_in_every_format_and_engine(wanted, way):
    tok = families.tokenizer("llama3")
    tokens, model = resolve_tokens(tok, wanted), families.model(tok, "abc", seed=3)
    if wanted == "unmarked":  # its turns end, too
        model.get_output_embeddings().bias.data[tok.eos_token_id] = 9.0
    sampling = Sampling(temperature=0, max_summary_tokens=6)
    with contextlib.ExitStack() as stack:
        engine = HFEngine(model, tokens, branches=way == "cache")
        if way == "server":
            url, _ = stack.enter_context(serving(model, engine.tokens, most=256))
            engine = ServerEngine(url, engine.tokens, retries=0)
            stack.callback(engine.http.close)
        ends = []
        for number in range(0, 40, 5):
            asked = f"{number} + 1?"
            engine.context_length = context_for(20, engine.tokens, sampling, asked)
            thought = Thinker(engine, sampling).think(asked, 0.0)
            (tree,) = HFEngine(model, tokens).sample_trees([thought.prompt], [3, 20], 1, sampling)
            heard = [think_on(thought, 3).answers(1)[0]]
            heard.append(think_on(thought, 20).answers(1)[0])
            assert (tuple(thought.ids), thought.end) == (tree.thinking, tree.end)
            assert thought.text == tokens.decode(tree.thinking)
            for answer, leaf in zip(heard, tree.leaves, strict=True):
                assert answer.forced == tokens.decode(leaf.forced)
                assert (answer.text, answer.finished) == (
                    tokens.decode(leaf.summary),
                    leaf.finished,
                )
            ends.append(thought.end)
    assert set(ends) >= {"closed", "length"}
