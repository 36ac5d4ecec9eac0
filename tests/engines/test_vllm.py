"""vLLM itself: evaluation in process and over a server, and rollouts in training.

Needs vLLM, on CUDA or on a CPU: `make test-vllm` makes an environment with the latter.
"""

import contextlib
import importlib.util
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pandas as pd
import pytest
import torch
import vllm_scenarios

from anytime_lab.engines.base import Sampling
from anytime_lab.engines.load import load_engine, load_model, model_path
from anytime_lab.engines.thoughts import ThinkingError
from anytime_lab.store.records import read_records

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
SCENARIOS = Path(vllm_scenarios.__file__)


def run_scenario(name, folder):
    run = subprocess.run(
        [sys.executable, str(SCENARIOS), name, str(folder)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-4000:]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Records of the HF engine."""
    folder = tmp_path_factory.mktemp("hf")
    vllm_scenarios.greedy_records(load_engine("hf", "embedded", vllm_scenarios.work()[2]), folder)
    return read_records(folder)


def assert_same_records(found, expected):
    assert list(found.columns) == list(expected.columns)
    assert (found.dtypes == expected.dtypes).all()
    assert found.logprob.to_list() == pytest.approx(expected.logprob.to_list(), abs=1e-3)
    pd.testing.assert_frame_equal(found.drop(columns="logprob"), expected.drop(columns="logprob"))


def assert_log_probs_of_the_model(trees, temperature):
    model = load_model("embedded", device="cpu")
    for tree in trees:
        parts = [(tree.prompt, tree.thinking, tree.logprobs)]
        parts += [
            ((*tree.prompt, *tree.thinking[: leaf.cut], *leaf.forced), leaf.summary, leaf.logprobs)
            for leaf in tree.leaves
        ]
        for context, tokens, logprobs in parts:
            ids = torch.tensor([[*context, *tokens]])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, len(context) - 1 : -1] / temperature
            own = logits.log_softmax(-1).gather(1, ids[0, len(context) :, None])[:, 0]
            assert logprobs == pytest.approx(own.tolist(), abs=1e-3)


def test_evaluation_by_vllm_equals_evaluation_by_transformers(tmp_path, expected):
    run_scenario("evaluate", tmp_path)
    assert_same_records(read_records(tmp_path / "records"), expected)
    (first, again, other), context = pickle.loads((tmp_path / "trees.pickle").read_bytes())
    assert context == 256
    assert first == again  # the seed decides
    assert first != other
    assert first[0].thinking != first[1].thinking  # two thinkings of one problem
    assert_log_probs_of_the_model(first, 0.7)
    # Two phases with nothing between them: what was thought is not read again, but for the tokens
    # after the last full block of the cache (32).
    told = json.loads((tmp_path / "cache.json").read_text())
    trunks, leaves = told["phases"]
    forced = len(first[0].leaves[0].forced)
    assert told["asked"] == sum(trunks) + 2 * sum(leaves)
    assert told["hits"] >= 2 * sum(32 * ((length - forced) // 32) for length in leaves) > 1000


def test_training_on_vllm_rollouts_keeps_its_weights_in_step(tmp_path):
    run_scenario("train", tmp_path)
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["tied"] and told["moved"] > 0.01
    assert [line["step"] for line in told["in_step"]] == [1, 2, 3]
    assert all(line["logprobs/difference_max"] < 1e-3 for line in told["in_step"])
    assert all(
        line[f"sampling/importance_sampling_ratio/{end}"] == pytest.approx(1, abs=1e-3)
        for line in told["in_step"]
        for end in ("min", "max")
    )
    assert told["warned"][0] == 0
    # Without new weights the head is stale, and the check says so.
    assert told["stale"][-1]["logprobs/difference_mean"] > 0.05
    assert told["warned"][1] > 0


@pytest.fixture(scope="module")
def server():
    """vLLM's OpenAI-compatible server on loopback, serving the embedded model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1",
        "--port", str(port), "--model", model_path("embedded"), "--dtype", "float32",
        "--enforce-eager", "--max-model-len", "256", "--logprobs-mode", "processed_logprobs",
        "--no-enable-chunked-prefill",
    ]  # fmt: skip
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 240
    try:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/health").is_success:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                os.killpg(process.pid, signal.SIGKILL)
                pytest.fail(f"the server did not start: {process.communicate()[0][-4000:]}")
            time.sleep(0.5)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_evaluation_over_a_server_equals_evaluation_by_transformers(server, tmp_path, expected):
    engine = load_engine(server, "embedded", vllm_scenarios.work()[2])
    assert engine.context_length == 256
    vllm_scenarios.greedy_records(engine, tmp_path)
    assert_same_records(read_records(tmp_path), expected)


def test_a_server_samples_by_the_seed_at_the_sampling_temperature(server, caplog):
    engine = load_engine(server, "embedded", vllm_scenarios.work()[2], concurrency=3)
    first = vllm_scenarios.sampled_trees(engine, 1)
    assert vllm_scenarios.sampled_trees(engine, 1) == first
    assert vllm_scenarios.sampled_trees(engine, 2) != first
    assert_log_probs_of_the_model(first, 0.7)
    assert "at temperature 1" not in caplog.text


def test_a_server_with_another_model_or_too_short_a_context_is_told(server):
    tokens = vllm_scenarios.work()[2]
    with pytest.raises(ThinkingError, match=r"serves '.*embedded_model'.*served_name"):
        load_engine(server, "another/model", tokens)
    engine = load_engine(server, "embedded", tokens)
    with pytest.raises(ThinkingError, match="Lower the budgets"):
        engine.sample_trees([[1, 2, 3]], [300], 1, Sampling(temperature=0))
