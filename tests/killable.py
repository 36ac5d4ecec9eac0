"""Jobs that a test starts in processes of their own, to kill them."""

import contextlib
import multiprocessing
import os
from pathlib import Path

import tiny
import torch
import transformers

from anytime_lab.engines.base import Sampling
from anytime_lab.engines.hf import HFEngine
from anytime_lab.evaluate import evaluate
from anytime_lab.prompts import detect_format, resolve_tokens
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
        engine = HFEngine(tiny.model(tok), resolve_tokens(tok, detect_format(tok)))
        data = tiny.problems(10)
        evaluate(
            engine,
            tok,
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
    transformers.logging.disable_progress_bar()
    path = Path(folder).with_name(f"{Path(folder).name}.log")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        yield
