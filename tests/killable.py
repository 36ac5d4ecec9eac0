"""Jobs that a test starts in processes of their own, to kill them; and what is equal after it."""

import contextlib
import gc
import json
import multiprocessing
import os
from pathlib import Path

import tiny
import torch
import transformers
from safetensors.torch import load_file

from anytime_lab.engines.base import Sampling
from anytime_lab.engines.hf import HFEngine
from anytime_lab.evaluate import evaluate
from anytime_lab.prompts import resolve_tokens
from anytime_lab.train.recording import last_complete_checkpoint
from anytime_lab.train.trainer import BRPOTrainer
from anytime_lab.verify.verifiers import ExactVerifier

# Two generations of two updates each, and a checkpoint after every update.
TRAINING = {
    "budgets": [3, 6],
    "max_steps": 6,
    "steps_per_generation": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 1,
    "lr_scheduler_type": "constant",  # the same for runs of other lengths
    "max_summary_tokens": 6,
}
PROBLEMS = 16


def forks():
    """Processes that start with everything imported: a tenth of a second instead of five."""
    context = multiprocessing.get_context("forkserver")
    # Not this module: Python 3.11's fork server does not look where the tests lie.
    context.set_forkserver_preload(["anytime_lab.train.trainer", "anytime_lab.evaluate"])
    return context


def make_trainer(folder, dtype=torch.float32, **settings):
    """A trainer whose rollouts are sampled, so that the random state matters."""
    tok = tiny.tokenizer()
    config = tiny.config(folder, **{**TRAINING, **settings})
    return BRPOTrainer(
        tiny.model(tok).to(dtype),
        tiny.digit_reward,
        config,
        tiny.problems(PROBLEMS),
        processing_class=tok,
    )


def train(folder):
    """What the training notebook does: go on from the last whole checkpoint."""
    with quiet(folder):
        make_trainer(folder).train(resume_from_checkpoint=last_complete_checkpoint(folder))


def evaluate_tiny(folder):
    """Ten chunks of two thinkings."""
    with quiet(folder):
        tok = tiny.tokenizer()
        engine = HFEngine(tiny.model(tok), resolve_tokens(tok))
        data = tiny.problems(10)
        evaluate(
            engine,
            data.add_column("problem_id", [f"p{n}" for n in range(len(data))]),
            ExactVerifier(),
            [3, 6],
            folder,
            num_samples=2,
            sampling=Sampling(max_summary_tokens=3),
            batch_size=2,
            progress=False,
        )


@contextlib.contextmanager
def quiet(folder):
    """Keep what a job says beside its folder, for a test that fails."""
    gc.freeze()  # what is imported is not looked through at each training
    transformers.logging.disable_progress_bar()
    path = Path(folder).with_name(f"{Path(folder).name}.log")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        yield


# --- checkpoints and lines of metrics, equal to the last bit

TIMES = {"seconds", "cpu_seconds"}


def lines(folder):
    """The lines of metrics without what the clock says."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if k not in TIMES and not k.startswith("time/")}
        for row in rows
    ]


def assert_same_tree(first, second):
    """Equal values bit by bit in nested containers of tensors."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same_tree(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same_tree(one, other)
    else:
        assert first == second


def assert_same_checkpoint(first, second):
    """Weights, optimizer and schedule, bit by bit."""
    assert_same_tree(
        load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    )
    assert_same_tree(torch.load(first / "scheduler.pt"), torch.load(second / "scheduler.pt"))
    paths = [*first.glob("optimizer.*"), *first.glob("global_step*/*_optim_states.pt")]
    assert paths
    for path in paths:
        states = [
            torch.load(folder / path.relative_to(first), weights_only=False)
            for folder in (first, second)
        ]
        for state in states:  # DeepSpeed's, in one of its classes
            state.get("optimizer_state_dict", {}).pop("loss_scaler", None)
            state.pop("ds_config", None)
        assert_same_tree(*states)
