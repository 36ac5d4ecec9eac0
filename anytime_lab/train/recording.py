"""What a training leaves in its folder: metrics, whole checkpoints, settings, kept rollouts."""

import contextlib
import json
import os
import time
import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProgressCallback, TrainerCallback
from transformers.trainer_utils import rotate_checkpoints

from anytime_lab.prompts import ThinkingTokens, decode, text_and_ends
from anytime_lab.store.files import (
    METRICS,
    RunFolderError,
    append_jsonl,
    read_json,
    read_jsonl,
    remove_leftovers,
    run_folder,
    write_json,
    write_progress,
    write_text,
)
from anytime_lab.store.manifest import describe_problems, environment, sessions_of
from anytime_lab.store.rollouts import drop_rollouts_after, write_rollouts
from anytime_lab.train.advantages import (
    BASELINES,
    group_baseline,
    progress_baseline,
    returns,
    summary_advantages,
    thinking_advantages,
)
from anytime_lab.train.config import BRPOConfig
from anytime_lab.train.scoring import ENDS, TreeNumbers
from anytime_lab.tree import Tree
from anytime_lab.verify.verifiers import FAILURES

# TRL reads these off the last token of a row, which in a tree is the last summary's.
MISLEADING = (
    "completions/clipped_ratio",
    "completions/mean_terminated_length",
    "completions/min_terminated_length",
    "completions/max_terminated_length",
)


def combine_rewards(rewards: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over reward functions; NaN where all of them abstained.

    Args:
        rewards: (..., F), NaN where a function returned None.
        weights: (F,).

    Returns:
        (...) scores.
    """
    scores = (rewards * weights.to(rewards)).nansum(dim=-1)
    return scores.masked_fill(rewards.isnan().all(dim=-1), torch.nan)


def prior_mean(scores: Tensor, prior: Tensor) -> Tensor:
    """Sum of P_j r_j over the budgets that have a score, their weights scaled to sum to 1.

    Args:
        scores: (..., J), NaN where every verifier abstained.
        prior: (J,).

    Returns:
        (...), NaN where no budget with a weight has a score.
    """
    weights = prior.to(scores).expand_as(scores).masked_fill(scores.isnan(), 0.0)
    total = weights.sum(-1)
    return (weights * scores.nan_to_num(0.0)).sum(-1) / total.masked_fill(total == 0, torch.nan)


def overthinking(scores: Tensor) -> Tensor:
    """Whether an earlier budget scored higher than the last, (N,) bool, for scores (N, J)."""
    known = scores.nan_to_num(-torch.inf)
    return (known.max(dim=1).values > known[:, -1]) & ~scores[:, -1].isnan()


def generation_metrics(
    leaf_scores: Tensor, numbers: TreeNumbers, prior: Tensor, budgets: Sequence[int]
) -> dict[str, float]:
    """Scores, lengths, format and overthinking of N thinkings.

    Args:
        leaf_scores: (N, J, S) before any length penalty, NaN where the verifiers abstained.
        numbers: what was counted on the same trees.
        prior: (J,) P_j.
        budgets: J token budgets, the names of the per-budget metrics.

    Returns:
        name -> value; NaN where nothing was scored.
    """
    scores = leaf_scores.nanmean(dim=2)
    lengths = numbers.lengths.double()
    over = overthinking(scores)
    metrics = {
        "anytime_accuracy": prior_mean(scores, prior).nanmean(),
        "uniform_accuracy": prior_mean(scores, torch.ones_like(prior)).nanmean(),
        "final_accuracy": scores[:, -1].nanmean(),
        "format_rate": numbers.formatted.double().mean(),
        "abstained": leaf_scores.isnan().double().mean(),
        "thinking/length": lengths.mean(),
        "thinking/length_max": lengths.max(),
        "thinking/unfinished": (numbers.ends == ENDS.index("length")).double().mean(),
        "thinking/eos": (numbers.ends == ENDS.index("eos")).double().mean(),
        "thinking/overthinking": over.double().mean(),
        "thinking/overthinking_count": over.sum(),
        "summary/length": numbers.summary_tokens.double().mean(),
        "summary/finished": numbers.finished.double().mean(),
        "tokens/thinking": numbers.lengths.sum(),
        "tokens/summary": numbers.summary_tokens.sum(),
    }
    per_budget = scores.nanmean(dim=0)
    metrics |= {f"score/{b}": per_budget[j] for j, b in enumerate(budgets)}
    names, values = list(metrics), torch.stack([v.double() for v in metrics.values()])
    return dict(zip(names, values.tolist(), strict=True))  # one transfer from the device


def variance_metrics(
    explained: dict[str, tuple[Tensor, Tensor]], reached: Tensor, budgets: Sequence[int]
) -> dict[str, float]:
    """`variance/corr/BASELINE/BUDGET` and `variance/ratio/BASELINE/BUDGET` (the paper's figure 3).

    `variance/reached/BUDGET` is the share of thinkings that they are taken over; a run that lacks
    it was written when they were taken over all.

    Args:
        explained: as `variance_diagnostics` returns it.
        reached: (P, G, J) bool, the thinkings that reach each budget.
        budgets: J token budgets.
    """
    rows = {
        f"variance/{measure}/{name}": values
        for name, pair in explained.items()
        for measure, values in zip(("corr", "ratio"), pair, strict=True)
    }
    rows["variance/reached"] = reached.to(next(iter(rows.values()))).mean((0, 1))
    numbers = torch.stack(list(rows.values())).tolist()  # one transfer from the device
    return {
        f"{name}/{budget}": value
        for name, row in zip(rows, numbers, strict=True)
        for budget, value in zip(budgets, row, strict=True)
    }


# Written last: its presence says that all the rest was written, and it lists what that is.
STATE_FILE = "brpo_state.json"

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model_fsdp_0",
    "pytorch_model_fsdp.bin",
)
_OPTIMIZER = ("optimizer.pt", "optimizer.bin", "optimizer_0", "optimizer_0.bin")


def missing_parts(checkpoint: str | Path) -> list[str]:
    """What a checkpoint lacks to be resumed, damaged files among it; empty if it is whole.

    Args:
        checkpoint: a folder `checkpoint-<step>` that a `BRPOTrainer` wrote.
    """
    folder = Path(checkpoint)
    missing = []
    listed: Mapping[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        listed = read_state(folder).get("files", {})
    for name in ("trainer_state.json", STATE_FILE):
        try:
            json.loads((folder / name).read_text())
        except (OSError, ValueError):
            missing.append(name)
    # DeepSpeed keeps weights and optimizer in one folder named after the step.
    if not any(folder.glob("global_step*")):
        if not any((folder / name).exists() for name in _WEIGHTS):
            missing.append("the model's weights")
        if not any((folder / name).exists() for name in _OPTIMIZER):
            missing.append("optimizer.pt")
    if not (folder / "scheduler.pt").exists():
        missing.append("scheduler.pt")
    if not any(folder.glob("rng_state*.pth")):
        missing.append("rng_state.pth")
    for name, told in listed.items():  # [bytes, checksum]; the bytes alone in older checkpoints
        size, checksum = told if isinstance(told, list) else (told, None)
        found = folder / name
        if name not in missing and (
            not found.is_file()
            or found.stat().st_size != size
            or checksum not in (None, _checksum(found))
        ):
            missing.append(name)
    return missing


def _checksum(path: Path) -> int:
    """CRC-32 of a file."""
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
    return checksum


@contextlib.contextmanager
def whole_checkpoint(folder: Path, args: Any, best: str | None) -> Iterator[None]:
    """Around all writing of a checkpoint: earlier ones are deleted only once it is whole.

    transformers deletes what `save_total_limit` allows before the last file is there; a run killed
    then would have nothing to go on from.

    Args:
        folder: of the checkpoint.
        args: of the run; `save_total_limit` is off inside the block.
        best: a checkpoint that is kept in any case.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written.
    """
    limit, args.save_total_limit = args.save_total_limit, None
    try:
        if args.should_save:  # of the same step, before the run went back and came here again
            (folder / STATE_FILE).unlink(missing_ok=True)
        yield
    except (OSError, SafetensorError, RuntimeError, RunFolderError) as error:
        last = last_complete_checkpoint(folder.parent)
        kept = f"{last} is whole; training goes on from there" if last else "Training begins anew"
        raise RunFolderError(
            f"could not write {folder}: {error}. {kept} once there is space "
            "and the folder can be written. A lower save_total_limit needs less."
        ) from error
    finally:
        args.save_total_limit = limit
    if args.should_save:
        rotate_checkpoints(str(folder.parent), limit, best, use_mtime=True)


def mark_complete(checkpoint: str | Path, state: Mapping[str, Any]) -> None:
    """Write the last file of a checkpoint, once all others have reached the disk."""
    folder, files = Path(checkpoint), {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != STATE_FILE:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            files[str(path.relative_to(folder))] = [path.stat().st_size, _checksum(path)]
    write_json(folder / STATE_FILE, {**state, "files": files})


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """The whole checkpoint of the highest step under `output_dir`, or None; damaged ones are told.

    For `trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir))`, which
    starts from the beginning where there is none.
    """
    found = {}
    for folder in run_folder(output_dir).glob("checkpoint-*"):
        step = folder.name.removeprefix("checkpoint-")
        if step.isdecimal() and folder.is_dir():
            found[int(step)] = folder
    for step in sorted(found, reverse=True):
        if not (missing := missing_parts(found[step])):
            return str(found[step])
        warnings.warn(
            f"{found[step]} is passed over: {', '.join(missing)} missing or damaged, as when a run "
            "was killed while writing.",
            stacklevel=2,
        )
    return None


def read_state(checkpoint: str | Path) -> dict[str, Any]:
    """What `BRPOTrainer` adds to a checkpoint (`mark_complete`); empty where there is nothing."""
    path = Path(checkpoint) / STATE_FILE
    return json.loads(path.read_text()) if path.exists() else {}


def checkpoint_to_resume(output_dir: str | Path, wanted: str | bool | None) -> str | None:
    """The folder that `resume_from_checkpoint` means; None to start from the beginning.

    Args:
        output_dir: of the run.
        wanted: a folder, True for the last complete one in `output_dir`, or None or False.

    Raises:
        ValueError: there is no such checkpoint, or it lacks a part.
    """
    if not wanted:
        return None
    if wanted is True:
        path = last_complete_checkpoint(output_dir)
        if path is None:
            raise ValueError(
                f"no complete checkpoint lies in {output_dir}. Start with "
                "resume_from_checkpoint=None, or pass last_complete_checkpoint(output_dir), "
                "which is None where there is none."
            )
        return path
    if missing := missing_parts(wanted):
        raise ValueError(
            f"{wanted} cannot be resumed: {', '.join(missing)} missing or damaged, as when a run "
            "was killed while writing. Pass last_complete_checkpoint(output_dir)."
        )
    return str(wanted)


def step_of(checkpoint: str | Path) -> int:
    """Optimiser steps that a complete checkpoint has behind it."""
    return json.loads((Path(checkpoint) / "trainer_state.json").read_text())["global_step"]


EVAL_METRICS = "eval_metrics.jsonl"
# Not MANIFEST, which marks a folder as an evaluation: one may lie in the folder of its run.
TRAINING_MANIFEST = "training.json"
# Grades that a limit cut short, as verifiers log them: counts, of which TRL takes the mean of its
# processes. `_LOSS_METRICS` is what TRL measures in the loss, by the names it logs them under.
_FAILURES = tuple(f"/{reason.replace(' ', '_')}" for reason in FAILURES)
_LOSS_METRICS = ("entropy", "kl", "clip_ratio/region_mean")


# Fields that make another run; others (max_steps, saving, logging) may change on the way.
_MAKES_THE_RUN = (
    "budgets", "prior", "summary_prior", "num_summaries", "max_summary_tokens", "num_generations",
    "baseline", "discount", "train_summaries", "length_penalty", "length_penalty_alpha",
    "check_format", "loss_type", "loss_length", "beta", "epsilon", "temperature", "num_iterations",
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "seed",
)  # fmt: skip


def describe_trained(model: Any) -> dict[str, Any]:
    """The model that a run begins with, and the adapter that it trains, if any."""
    adapters = getattr(model, "peft_config", {})
    told = {
        name: {"rank": a.r, "alpha": a.lora_alpha, "targets": sorted(a.target_modules or [])}
        for name, a in adapters.items()
        if hasattr(a, "r")
    }
    name = getattr(model.config, "_name_or_path", "") or type(model).__name__
    return {"name": str(name), "lora": told or None}


def check_same_run(args: BRPOConfig, problems: Any, model: Any) -> None:
    """Refuse to go on with a run under other settings, as if it had been made with them.

    Args:
        args: of the run that is asked for.
        problems: its training set, or None.
        model: what it trains.

    Raises:
        RunFolderError: `args.output_dir` holds a run with other settings, problems or model.
    """
    path = Path(args.output_dir) / TRAINING_MANIFEST
    if not path.exists():
        return
    told = read_json(path)
    before, now = told.get("settings") or {}, json.loads(json.dumps(args.to_dict(), default=str))
    differ = [
        f"{name} {before[name]!r} (now {now[name]!r})"
        for name in _MAKES_THE_RUN
        if name in before and before[name] != now[name]
    ]
    trained, trains = told.get("model"), describe_trained(model)
    if trained and trained != trains:  # runs of earlier versions do not tell it
        differ.append(f"model {trained} (now {trains})")
    had, has = told.get("dataset"), None if problems is None else describe_problems(problems)
    if had and has and had["sha256"] != has["sha256"]:
        differ.append(f"{had['problems']} other problems (now {has['problems']})")
    if differ:
        raise RunFolderError(
            f"{args.output_dir} holds a run made with {', '.join(differ)}. Choose another "
            "output_dir, set these back to go on, or delete the folder to begin anew. (More "
            "max_steps alone goes on.)"
        )


def drop_lines_after(path: str | Path, step: int) -> None:
    """Keep the lines up to `step`: what a resumed run repeats must not stand there twice."""
    path = Path(path)
    rows = read_jsonl(path)
    kept = [row for row in rows if isinstance(row, dict) and row.get("step", step) <= step]
    if len(kept) == len(rows):
        return
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


class ProgressBar(ProgressCallback):
    """A bar alone: a notebook's own one has a table of losses below, which stays empty."""

    def on_log(self, *args, **kwargs):
        """Nothing: metrics.jsonl has every step, and `look.training_view` shows it."""


class StepRecorder(TrainerCallback):
    """Collects the numbers of a step from the trainer and writes them when the step ends.

    Attributes:
        seconds: wall time inside optimiser steps, rollouts included; without set-up, evaluation
            and saving. It continues over a resume.
        counters: sums over the whole run, e.g. tokens; they too continue over a resume.
    """

    def __init__(
        self,
        output_dir: str | Path,
        logged: dict[str, list[float]],
        problems: Any = None,
        trained: Mapping[str, Any] | None = None,
    ):
        self.folder = Path(output_dir)
        self.trained = trained  # the model, described in the manifest
        self.problems = problems  # the training set, described in the manifest
        self.logged = logged  # TRL's own lists, cleared after each log
        self.seconds = 0.0
        self.counters: dict[str, float] = defaultdict(float)
        self.resumed_from: str | None = None
        self._values: dict[str, Any] = {}
        self._seen: dict[str, int] = {}
        self._loss = 0.0
        self._started = self._began = 0.0
        self._first_step = 0

    def note(self, values: dict[str, Any]) -> None:
        """Add values to the line of the current step."""
        self._values |= values

    def add(self, name: str, seconds: float) -> None:
        """Add to a value of the current step that comes in parts, such as a time."""
        self._values[name] = self._values.get(name, 0.0) + seconds

    def value(self, name: str) -> float:
        """What `add` has made of a value so far in this step."""
        return self._values.get(name, 0.0)

    def count(self, values: dict[str, float]) -> None:
        """Add to the sums over the run."""
        for name, value in values.items():
            self.counters[name] += value

    def add_loss(self, loss: float) -> None:
        """Add the loss of one micro-batch, already divided by their number."""
        self._loss += loss

    def save(self, checkpoint: str | Path) -> None:
        """Write the sums into a checkpoint; being last, the file marks it as complete."""
        mark_complete(checkpoint, {"seconds": self.seconds, "counters": self.counters})

    def on_train_begin(self, args, state, control, **kwargs):
        """Restore the sums, drop the lines that will be written again, and say that it begins."""
        saved = read_state(self.resumed_from) if self.resumed_from else {}
        self.seconds = saved.get("seconds", 0.0)
        self.counters = defaultdict(float, saved.get("counters", {}))
        self._started, self._first_step = time.time(), state.global_step
        self._values.clear()
        if state.is_world_process_zero:
            remove_leftovers(self.folder)
            for name in (METRICS, EVAL_METRICS):
                drop_lines_after(self.folder / name, state.global_step)
            self._write_manifest(args)
            self._write_progress(state, "training starts")

    def on_step_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        """Start the step's clock."""
        self._began = time.perf_counter()
        self._loss = 0.0
        self._seen = {name: len(values) for name, values in self.logged.items()}
        if lr_scheduler is not None:
            self._values["learning_rate"] = lr_scheduler.get_last_lr()[0]

    def on_step_end(self, args, state, control, **kwargs):
        """Write the step's line and the progress."""
        duration = time.perf_counter() - self._began
        self.seconds += duration
        line = {"step": state.global_step, "epoch": state.epoch, "loss": self._loss}
        for name in _LOSS_METRICS:
            new = self.logged.get(name, [])[self._seen.get(name, 0) :]
            if new:
                line[name] = sum(new) / len(new)
        for name, values in self.logged.items():
            if name.endswith(_FAILURES):
                line[name] = sum(values[self._seen.get(name, 0) :])
        line |= self._values
        line |= {"time/step": duration, "seconds": self.seconds, **self.counters}
        self._values = {}
        if state.is_world_process_zero:
            append_jsonl(self.folder / METRICS, line)
            score = line.get("anytime_accuracy")
            self._write_progress(
                state,
                "" if score is None else f"anytime accuracy {score:.3f}, loss {line['loss']:.4f}",
            )

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Keep the evaluation's numbers beside those of training."""
        if state.is_world_process_zero and metrics:
            append_jsonl(self.folder / EVAL_METRICS, {"step": state.global_step, **metrics})

    def on_train_end(self, args, state, control, **kwargs):
        """Say that training is over."""
        if state.is_world_process_zero:
            self._write_progress(state, "training finished")

    def stopped(self, state, error: BaseException) -> None:
        """Say that training ended before its last update, for whoever watches the run."""
        if state.is_world_process_zero and self._started:
            why = "interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__
            with contextlib.suppress(RunFolderError):  # the error itself is told
                self._write_progress(state, f"training stopped: {why}")

    def _write_manifest(self, args) -> None:
        """Settings, problems, code and versions; a resumed run adds a session."""
        path = self.folder / TRAINING_MANIFEST
        lost = "Delete it and go on: only what it tells of earlier sessions is lost."
        known = read_json(path, lost) if self.resumed_from and path.exists() else {}
        before = sessions_of(known)
        problems = None if self.problems is None else describe_problems(self.problems)
        settings = json.loads(json.dumps(args.to_dict(), default=str))
        sessions = [*before, {**environment(), "resumed_from": self.resumed_from}]
        told = {"dataset": problems, "model": self.trained, "settings": settings}
        write_json(path, {**told, "sessions": sessions})

    def _write_progress(self, state, message: str) -> None:
        write_progress(
            self.folder,
            "train",
            state.global_step,
            state.max_steps,
            "updates",
            started=self._started,
            done_before=self._first_step,
            message=message,
        )


PROBLEMS = 2  # whose trees are kept of a generation


def chosen_groups(scores: Tensor, prior: Tensor) -> list[int]:
    """The group whose returns vary most, which shows most, and the first other one.

    Args:
        scores: (P, G, J), NaN where nothing was scored.
        prior: (J,).
    """
    spread = returns(scores, prior).var(dim=1, correction=0).sum(-1)
    first = int(spread.argmax())
    others = [p for p in range(len(scores)) if p != first]
    return [first, *others][:PROBLEMS]


def credit(scores: Tensor, cuts: Tensor, args: BRPOConfig) -> dict[str, Tensor]:
    """What a rollout file says of credit, for whole groups.

    Args:
        scores: (P, G, J, S) of the summaries, NaN where the verifier abstained.
        cuts: (P, G, J) thinking tokens that they stand on.
        args: prior, discount, length penalty and baselines.

    Returns:
        Columns of ROLLOUT_SCHEMA: `summary_advantages` (P, G, J, S), all others (P, G, J).
    """
    leaf = args.penalised(scores, cuts)
    means = leaf.nanmean(dim=3)
    prior = means.new_tensor(args.budget_prior.weights)
    final = torch.zeros_like(prior)
    final[-1] = 1.0
    told = {
        "credited": means,
        "returns": returns(means, prior),
        "progress": progress_baseline(means, prior, args.discount),
        "group": group_baseline(means, prior),
        "summary_advantages": summary_advantages(
            leaf, cuts, means.new_tensor(args.summary_weights)
        ),
        "advantage_grpo": thinking_advantages(means, final, args.budgets, "group", args.discount),
    }
    for name in BASELINES:
        told[f"advantage_{name}"] = thinking_advantages(
            means, prior, args.budgets, name, args.discount
        )
    return told


class RolloutRecorder(TrainerCallback):
    """Keeps the trees of two problems every `save_rollouts_steps` updates.

    Args:
        args: of the run.
        tokenizer: of the model.
        tokens: the thinking format in its ids.
    """

    def __init__(
        self, args: BRPOConfig, tokenizer: PreTrainedTokenizerBase, tokens: ThinkingTokens
    ):
        self.args, self.tokenizer, self.tokens = args, tokenizer, tokens
        self._step = 0  # the update that is under way
        self._writes = False

    def on_train_begin(self, args, state, control, **kwargs):
        """Drop the trees that will be written again."""
        self._writes = state.is_world_process_zero
        if self._writes:
            drop_rollouts_after(self.args.output_dir, state.global_step)

    def on_step_begin(self, args, state, control, **kwargs):
        """Remember which update samples."""
        self._step = state.global_step + 1

    def record(self, trees: Sequence[Tree], first: int, scores: Tensor, cuts: Tensor) -> None:
        """Write the trees of the chosen problems, if it is their turn. All processes call this.

        Args:
            trees: of this process.
            first: place of its first tree among those of all processes.
            scores: (N, J, S) of all processes' trees, before any length penalty.
            cuts: (N, J).
        """
        if not self._step or not self.args.saves_rollouts_at(self._step):
            return
        group = self.args.num_generations
        scores = scores.detach().double().cpu().unflatten(0, (-1, group))
        cuts = cuts.cpu().unflatten(0, (-1, group))
        told = credit(scores, cuts, self.args)
        prior = told["returns"].new_tensor(self.args.budget_prior.weights)
        chosen = chosen_groups(told["credited"], prior)
        numbers = {"scores": scores, "cuts": cuts, **told}
        rows = []
        for place, tree in enumerate(trees, start=first):
            problem, sample = divmod(place, group)
            if problem in chosen:
                credited = {
                    name: value[problem, sample].tolist() for name, value in numbers.items()
                }
                rows.append({"problem": problem, "sample": sample, **self._texts(tree), **credited})
        rows = gather_object(rows)  # a group may straddle processes
        if self._writes:
            rows.sort(key=lambda row: (chosen.index(row["problem"]), row["sample"]))
            write_rollouts(self.args.output_dir, self._step, self._settings(), rows)

    def _texts(self, tree: Tree) -> dict[str, Any]:
        thinking, ends = text_and_ends(self.tokenizer, self.tokens, tree.thinking)
        summaries = self.args.num_summaries
        told = [decode(self.tokenizer, self.tokens, leaf.summary) for leaf in tree.leaves]
        return {
            "prompt": self.tokenizer.decode(tree.prompt, skip_special_tokens=False),
            "thinking": thinking,
            "token_ends": ends,
            "tokens": len(tree.thinking),
            "end": tree.end,
            "summaries": [told[i : i + summaries] for i in range(0, len(told), summaries)],
        }

    def _settings(self) -> dict[str, Any]:
        args = self.args
        return {
            "budgets": args.budgets,
            "prior": list(args.budget_prior.weights),
            "baseline": args.baseline,
            "discount": args.discount,
            "summary_weights": list(args.summary_weights),
            "length_penalty": args.length_penalty,
            "methods": {name: words for name, (words, _) in BASELINES.items()},
        }
