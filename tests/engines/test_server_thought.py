"""Thoughts over HTTP, on a server with the embedded model, against the same model in here."""

import contextlib
import threading
import time

import pytest
from completions_server import serving
from made_thoughts import QUESTION, context_for, think_on

from anytime_lab.engines.load import load_thinker
from anytime_lab.engines.server import ServerEngine
from anytime_lab.engines.thoughts import Thinker, ThinkingError
from anytime_lab.prompts import prompt_ids


@pytest.fixture(scope="module")
def local():
    return load_thinker("embedded", max_summary_tokens=24)


@pytest.fixture
def served(local):
    """Starts servers and gives a thinker on each, with what the server was told and asked."""
    with contextlib.ExitStack() as stack:

        def start(timeout=60.0, room=None, **behaviour):
            model, tokens = local.engine.model, local.engine.tokens
            url, told = stack.enter_context(serving(model, tokens, **behaviour))
            engine = ServerEngine(url, tokens, timeout=timeout, retries=0)
            stack.callback(engine.http.close)
            if room is not None:
                engine.context_length = context_for(room, engine.tokens, local.sampling)
            return Thinker(engine, local.sampling), told

        yield start


@pytest.mark.parametrize("tells", ["token_ids", "text"])
def test_a_served_thinking_asked_midway_equals_the_local_one(served, local, tells):
    thinker, told = served(tells=tells)
    asked, alone = (t.think(QUESTION, 0.0) for t in (thinker, local))
    for n in range(60):
        if n in (0, 3, 20):
            heard, expected = asked.answers(3), alone.answers(3)
            assert [a.text for a in heard] == [a.text for a in expected]
            logprobs = [a.logprob for a in expected]
            assert [a.logprob for a in heard] == pytest.approx(logprobs, abs=1e-4)
        asked.step(), alone.step()
        assert (asked.text, asked.ids, asked.end) == (alone.text, alone.ids, alone.end)
    assert len(told.thought) == 8 and len(told.summarised) == 3  # a few tokens at a time


@pytest.mark.parametrize("tells", ["token_ids", "text"])
def test_a_sampled_thinking_is_the_same_however_often_it_is_asked(served, tells):
    thinker, _ = served(tells=tells)
    asked, alone, other = (thinker.think(QUESTION, 1.0, seed) for seed in (5, 5, 6))
    for n in range(30):
        if n in (0, 3, 20):
            asked.answers(2)
        asked.step(), alone.step(), other.step()
    assert asked.text == alone.text != other.text
    assert asked.answers(3) == alone.answers(3)


def test_a_question_stands_on_the_prefix_and_the_forced_text(served, local):
    thinker, told = served()
    thought = think_on(thinker.think(QUESTION, 1.0, seed=5), 10)
    thought.answers(4)
    prompt = prompt_ids(QUESTION, local.engine.tokens.tokenizer, local.engine.tokens.fmt)
    (body,) = told.summarised
    assert body["prompt"] == [*prompt, *thought.ids, *thinker.engine.tokens.cut_ids]
    assert (body["n"], body["max_tokens"]) == (4, 24)
    assert [one["prompt"] for one in told.thought] == [prompt, [*prompt, *thought.ids[:8]]]


@pytest.mark.parametrize("behaviour", [{}, {"tells": "text", "past_end": " and more"}], ids=str)
def test_a_thinking_ends_at_its_marker_whatever_the_server_sends_past_it(served, local, behaviour):
    thinker, _ = served(**behaviour)
    question = [{"role": "user", "content": "Reach 42 with 12, 16, 14."}]
    thought, alone = (t.think(question, 0.0) for t in (thinker, local))
    while not thought.end:
        thought.step(), alone.step()
    assert thought.end == alone.end == "closed" and thought.text.endswith("\n</think>")
    (answer,), (expected,) = thought.answers(1), alone.answers(1)
    assert answer.forced == thinker.engine.tokens.fmt.header and answer.text == expected.text
    assert answer.logprob < 0 and answer.finished
    assert thought.step() == ""


def test_a_limit_of_tokens_ends_the_thinking(served):
    thinker, told = served(room=11)
    thought = think_on(thinker.think(QUESTION, 0.0), 13)
    assert (thought.length, thought.end) == (11, "length")
    assert [body["max_tokens"] for body in told.thought] == [8, 3]
    assert len(thought.answers(3)) == 3 and told.summarised[0]["n"] == 1  # greedy: all are alike


def test_a_thinking_that_failed_goes_on_where_it_was(served, local):
    thinker, told = served()
    thought = think_on(thinker.think(QUESTION, 0.0), 8)
    told.failures.append(503)
    with pytest.raises(ThinkingError, match="refused: 503 too busy"):
        thought.step()
    assert think_on(thought, 12).text == think_on(local.think(QUESTION, 0.0), 20).text


def test_refusals_are_sentences(served):
    thinker, _ = served(refuse="out of memory <b>")
    with pytest.raises(ThinkingError, match="refused: 400 out of memory <b>"):
        thinker.think(QUESTION).step()
    with pytest.raises(ThinkingError, match="refused: 400"):
        thinker.think(QUESTION).answers(2)


def test_silence_is_told(served):
    thinker, _ = served(timeout=0.3, hang=5.0)
    with pytest.raises(ThinkingError, match="said nothing for 0.3 seconds"):
        thinker.think(QUESTION).step()


@pytest.mark.parametrize("call", ["step", "answers"])
def test_close_ends_a_call_in_another_thread_with_what_comes_next(served, call):
    thinker, told = served(hang=0.5)
    thought = thinker.think(QUESTION)
    said = []

    def run():
        try:
            thought.step() if call == "step" else thought.answers(2)
        except ThinkingError as error:
            said.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    while not told.asked:
        time.sleep(0.01)
    time.sleep(0.1)
    started = time.monotonic()
    thought.close()
    thread.join(15)
    assert not thread.is_alive() and time.monotonic() - started < 15
    assert len(said) == 1


def test_no_server_and_the_wrong_model_are_sentences(served, local):
    with pytest.raises(ThinkingError, match="no server answers at http://127.0.0.1:9/v1"):
        load_thinker("http://127.0.0.1:9")
    with pytest.raises(ValueError, match="http"):
        ServerEngine("localhost:8000", local.engine.tokens)
    thinker, _ = served()
    with pytest.raises(ThinkingError, match="serves 'served'; asked for 'other'"):
        load_thinker(thinker.engine.url, tokenizer="embedded", served_name="other")


def test_a_password_in_the_url_is_sent_and_told_nowhere(served, local):
    thinker, _ = served()
    url = thinker.engine.url.replace("http://", "http://me:hunter2@")
    engine = ServerEngine(url, local.engine.tokens)
    assert engine.url == thinker.engine.url
    sent = next(engine.http.auth.auth_flow(engine.http.build_request("GET", engine.url)))
    assert sent.headers["Authorization"].startswith("Basic ")
    engine.http.close()


def test_a_server_is_loaded_by_its_url_and_a_tokenizer(local):
    with serving(local.engine.model, local.engine.tokens) as (url, _):
        thinker = load_thinker(url, tokenizer="embedded", max_summary_tokens=24)
        thought = think_on(thinker.think(QUESTION, 0.0), 8)
        assert thought.text == think_on(local.think(QUESTION, 0.0), 8).text
        with pytest.raises(ThinkingError, match="no tokenizer was found at 'served'"):
            load_thinker(url)
        thinker.engine.http.close()
