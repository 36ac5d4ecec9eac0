"""What a training leaves in its folder: metrics, checkpoints, settings, rollouts, its card."""

import contextlib
import json
import math
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
from huggingface_hub import ModelCard
from torch import Tensor
from transformers import ProgressCallback, TrainerCallback

from anytime_lab.page import redacted
from anytime_lab.prompts import text_and_ends
from anytime_lab.store import files
from anytime_lab.store.card import CARD, curve_block, known_curve
from anytime_lab.store.manifest import describe_problems, environment, sessions_of
from anytime_lab.store.rollouts import drop_rollouts_after, write_rollouts
from anytime_lab.train import advantages
from anytime_lab.train.config import METHOD, BRPOConfig
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


def chosen_groups(returns: Tensor) -> list[int]:
    """The group whose returns (P, G, J) vary most, which shows most, and the first other one."""
    first = int(returns.var(dim=1, correction=0).sum(-1).argmax())
    others = [p for p in range(len(returns)) if p != first]
    return [first, *others[:1]]


def credit(scores: Tensor, cuts: Tensor, args: BRPOConfig) -> dict[str, Tensor]:
    """What a generation's scores are worth to its tokens, and what a rollout file says of it.

    Args:
        scores: (P, G, J, S) of the summaries, NaN where the verifier abstained.
        cuts: (P, G, J) thinking tokens that they stand on.
        args: prior, discount, length penalty and baselines.

    Returns:
        Columns of ROLLOUT_SCHEMA: `scores` and `summary_advantages` (P, G, J, S), all others
        (P, G, J). `advantage_` and a baseline's name is the thinking's advantage under it.
    """
    leaf = scores
    if args.length_penalty is not None:
        penalty = advantages.PENALTIES[args.length_penalty][1]
        leaf = penalty(scores, cuts, args.budgets, args.length_penalty_alpha)
    means = leaf.nanmean(dim=3)
    prior, weights = map(leaf.new_tensor, (args.budget_prior.weights, args.summary_weights))
    final = torch.zeros_like(prior)
    final[-1] = 1.0
    methods = {name: (prior, name) for name in advantages.BASELINES} | {"grpo": (final, "group")}
    return {
        "scores": scores,
        "cuts": cuts,
        "credited": means,
        "returns": advantages.returns(means, prior),
        "progress": advantages.progress_baseline(means, prior, args.discount),
        "group": advantages.group_baseline(means, prior),
        "summary_advantages": advantages.summary_advantages(
            leaf, cuts, weights, args.summary_weighting, args.baseline
        ),
    } | {
        f"advantage_{name}": advantages.thinking_advantages(
            means, of, args.budgets, baseline, args.discount
        )
        for name, (of, baseline) in methods.items()
    }


# Written last: its presence says that all the rest was written, and it lists what that is.
STATE_FILE = "brpo_state.json"


def read_state(checkpoint: str | Path) -> dict[str, Any]:
    """What `BRPOTrainer` adds to a checkpoint (`mark_complete`); empty where it is not whole."""
    try:
        return json.loads((Path(checkpoint) / STATE_FILE).read_text())
    except (OSError, ValueError):
        return {}


def missing_parts(checkpoint: str | Path) -> list[str]:
    """What a checkpoint lacks to be resumed, damaged files among it; empty if it is whole.

    Args:
        checkpoint: a folder `checkpoint-<step>` that a `BRPOTrainer` wrote.
    """
    folder, state = Path(checkpoint), read_state(checkpoint)
    missing = [] if state else [STATE_FILE]
    for name, told in state.get("files", {}).items():
        found = _size_and_checksum(folder / name)
        if told not in (found, found[0]):  # the bytes alone in older checkpoints
            missing.append(name)
    return missing


def _size_and_checksum(path: Path) -> list[int | None]:
    """Bytes and CRC-32 of a file; [None] where there is none."""
    if not path.is_file():
        return [None]
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
    return [path.stat().st_size, checksum]


def mark_complete(checkpoint: str | Path, state: Mapping[str, Any]) -> None:
    """Write the last file of a checkpoint, once all others have reached the disk."""
    folder, listed = Path(checkpoint), {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != STATE_FILE:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            listed[str(path.relative_to(folder))] = _size_and_checksum(path)
    files.write_json(folder / STATE_FILE, {**state, "files": listed})


def whole_checkpoints(output_dir: str | Path) -> Iterator[str]:
    """The whole checkpoints under `output_dir`, the highest step first; damaged ones are told."""
    folders = files.run_folder(output_dir).glob("checkpoint-*")
    steps = {one.name.removeprefix("checkpoint-"): one for one in folders if one.is_dir()}
    for step in sorted(filter(str.isdecimal, steps), key=int, reverse=True):
        folder = steps[step]
        if missing := missing_parts(folder):
            warnings.warn(
                f"{folder} is passed over: {', '.join(missing)} missing or damaged, as when a run "
                "was killed while writing.",
                stacklevel=3,
            )
        else:
            yield str(folder)


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """The first of `whole_checkpoints`, or None.

    For `trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir))`, which
    starts from the beginning where there is none.
    """
    return next(whole_checkpoints(output_dir), None)


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
    if wanted is not True and (missing := missing_parts(wanted)):
        raise ValueError(
            f"{wanted} cannot be resumed: {', '.join(missing)} missing or damaged, as when a "
            "run was killed while writing. Pass last_complete_checkpoint(output_dir)."
        )
    path = last_complete_checkpoint(output_dir) if wanted is True else str(wanted)
    if path is None:
        raise ValueError(
            f"no complete checkpoint lies in {output_dir}. Start with "
            "resume_from_checkpoint=None, or pass last_complete_checkpoint(output_dir), "
            "which is None where there is none."
        )
    return path


EVAL_METRICS = "eval_metrics.jsonl"
# Not MANIFEST, which marks a folder as an evaluation: one may lie in the folder of its run.
TRAINING_MANIFEST = "training.json"
# Grades that a limit cut short, as verifiers log them: counts, of which TRL takes the mean of its
# processes. `_LOSS_METRICS` is what TRL measures in the loss, by the names it logs them under.
_FAILURES = tuple(f"/{reason.replace(' ', '_')}" for reason in FAILURES)
_LOSS_METRICS = ("entropy", "kl", "clip_ratio/region_mean")


def read_manifest(output_dir: str | Path) -> dict[str, Any]:
    """What a run says of its settings, problems and model; empty where there is no run.

    Raises:
        RunFolderError: the file is damaged.
    """
    path = Path(output_dir) / TRAINING_MANIFEST
    lost = "Delete it and go on: only what it tells of earlier sessions is lost."
    return files.read_json(path, lost) if path.exists() else {}


def drop_lines_after(path: str | Path, step: int) -> None:
    """Keep the lines up to `step`: what a resumed run repeats must not stand there twice."""
    rows = files.read_jsonl(path)
    kept = [row for row in rows if isinstance(row, dict) and row.get("step", step) <= step]
    if len(kept) < len(rows):
        files.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


# TRL's card follows, from the procedure on.
_TEXT = """# {name}

A model that is to give its best answer wherever its thinking is cut: {start}, trained with
[{title}](https://huggingface.co/papers/{paper}) by `anytime_lab` on
[TRL](https://github.com/huggingface/trl).

## How to load it

```python
from transformers import AutoTokenizer
from {library} import {loader}

tokenizer = AutoTokenizer.from_pretrained("{where}")
model = {loader}.from_pretrained("{where}")
```

```text
{format}
```

## Accuracy by thinking budget

{curve}

## Settings

| setting | value |
|---|---|
{settings}

## Data

{data}

"""


class ProgressBar(ProgressCallback):
    """A bar alone: a notebook's own one has a table of losses below, which stays empty."""

    def on_log(self, *args, **kwargs):
        """Nothing: metrics.jsonl has every step, and `look.training_view` shows it."""


class Recorder(TrainerCallback):
    """Writes what a training leaves in its folder, but for the checkpoints themselves.

    Attributes:
        line: numbers of the step that is under way; the trainer sets them, or adds to them.
        counters: sums over the whole run, which continue over a resume: tokens; `seconds`, wall
            time inside optimiser steps, rollouts included, without set-up, evaluation and saving;
            and `cpu_seconds` of all threads of the main process there, which other work on the
            machine hardly changes.
        resumed_from: the checkpoint that training went on from.
    """

    def __init__(self, trainer: Any):
        self.trainer, self.args = trainer, trainer.args
        self.folder = Path(self.args.output_dir)
        self.logged = trainer._metrics["train"]  # TRL's own lists, cleared after each log
        self.line: dict[str, Any] = defaultdict(float)
        self.counters: dict[str, float] = defaultdict(float)
        self.resumed_from: str | None = None
        self._seen: dict[str, int] = {}
        self._since: dict[str, float] = {}  # when this session began training, and at which step
        self._began = self._cpu_began = 0.0

    def tell(self, mode: str, numbers: Mapping[str, float]) -> None:
        """Hand numbers to TRL's logger and, in training, to the step's line."""
        for name, value in numbers.items():
            if not math.isnan(value):  # e.g. the correlation with a baseline that is constant
                self.trainer._metrics[mode][name].append(value)
        if mode == "train":
            self.line |= numbers

    def on_train_begin(self, args, state, control, **kwargs):
        """Restore the sums, drop what will be written again, and say that training begins."""
        saved = read_state(self.resumed_from) if self.resumed_from else {}
        before = {"seconds": saved.get("seconds", 0.0)}  # beside the others in older checkpoints
        self.counters = defaultdict(float, before | saved.get("counters", {}))
        self._since = {"started": time.time(), "done_before": state.global_step}
        self.line.clear()
        if state.is_world_process_zero:
            files.remove_leftovers(self.folder)
            for name in (files.METRICS, EVAL_METRICS):
                drop_lines_after(self.folder / name, state.global_step)
            drop_rollouts_after(self.folder, state.global_step)
            known = read_manifest(self.folder) if self.resumed_from else {}
            session = {**environment(), "resumed_from": self.resumed_from}
            told = {**self.described(), "sessions": [*sessions_of(known), session]}
            files.write_json(self.folder / TRAINING_MANIFEST, told)
        self._write_progress(state, "training starts")

    def on_step_begin(self, args, state, control, lr_scheduler, **kwargs):
        """Start the step's clock."""
        self._began, self._cpu_began = time.perf_counter(), time.process_time()
        self._seen = {name: len(values) for name, values in self.logged.items()}
        self.line["learning_rate"] = lr_scheduler.get_last_lr()[0]

    def on_step_end(self, args, state, control, **kwargs):
        """Write the step's line and the progress."""
        duration = time.perf_counter() - self._began
        self.counters["seconds"] += duration
        self.counters["cpu_seconds"] += time.process_time() - self._cpu_began
        line = {"step": state.global_step, "epoch": state.epoch, "loss": self.line.pop("loss", 0.0)}
        for name, values in self.logged.items():
            new = values[self._seen.get(name, 0) :]
            if name in _LOSS_METRICS and new:
                line[name] = sum(new) / len(new)
            if name.endswith(_FAILURES):
                line[name] = sum(new)
        line |= self.line | {"time/step": duration, **self.counters}
        self.line.clear()
        if state.is_world_process_zero:
            files.append_jsonl(self.folder / files.METRICS, line)
        score = line.get("anytime_accuracy")
        told = "" if score is None else f"anytime accuracy {score:.3f}, loss {line['loss']:.4f}"
        self._write_progress(state, told)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Keep the evaluation's numbers beside those of training."""
        if state.is_world_process_zero and metrics:
            files.append_jsonl(self.folder / EVAL_METRICS, {"step": state.global_step, **metrics})

    def on_train_end(self, args, state, control, **kwargs):
        """Say that training is over."""
        self._write_progress(state, "training finished")

    def stopped(self, state, error: BaseException) -> None:
        """Say that training ended before its last update, for whoever watches the run."""
        if self._since:
            why = "interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__
            with contextlib.suppress(files.RunFolderError):  # the error itself is told
                self._write_progress(state, f"training stopped: {why}")

    def _write_progress(self, state, message: str) -> None:
        if state.is_world_process_zero:
            done = state.global_step, state.max_steps, "updates"
            files.write_progress(self.folder, "train", *done, **self._since, message=message)

    # --- what the run is -------------------------------------------------------------------------

    def described(self) -> dict[str, Any]:
        """Settings and problems, the model that training begins with, and the adapter it trains."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        adapters = {
            name: {"rank": a.r, "alpha": a.lora_alpha, "targets": sorted(a.target_modules or [])}
            for name, a in getattr(model, "peft_config", {}).items()
            if hasattr(a, "r")
        }
        name = getattr(model.config, "_name_or_path", "") or type(model).__name__
        return {
            "dataset": describe_problems(self.trainer.train_dataset),
            "model": {"name": str(name), "lora": adapters or None},
            "settings": redacted(json.loads(json.dumps(self.args.to_dict(), default=str))),
        }

    def check_same_run(self) -> None:
        """Refuse to go on with a run under other settings, as if it had been made with them.

        Raises:
            RunFolderError: the folder holds a run with other settings, problems or model.
        """
        now, told = self.described(), read_manifest(self.folder)
        before, settings = told.get("settings") or {}, now["settings"]
        # Runs of earlier versions lack some of it; there was one weighting before there were two.
        before = {"summary_weighting": "eq10", **before} if before else {}
        differ = [
            f"{name} {before[name]!r} (now {settings[name]!r})"
            for name in METHOD
            if name in before and before[name] != settings[name]
        ]
        if (trained := told.get("model")) and trained != now["model"]:
            differ.append(f"model {trained} (now {now['model']})")
        if (had := told.get("dataset")) and had["sha256"] != now["dataset"]["sha256"]:
            differ.append(f"{had['problems']} other problems (now {now['dataset']['problems']})")
        if differ:
            raise files.RunFolderError(
                f"{self.args.output_dir} holds a run made with {', '.join(differ)}. Choose another "
                "output_dir, set these back to go on, or delete the folder to begin anew. (More "
                "max_steps alone goes on.)"
            )

    def write_card(self, folder: str | Path) -> None:
        """Write TRL's card, which lies in `output_dir`, into a folder, with what it lacks.

        A curve that was measured after the same update is kept.
        """
        trainer, update = self.trainer, self.trainer.state.global_step
        card = ModelCard.load(self.folder / CARD)
        told = self.described() | read_manifest(self.folder)
        data, start = told["dataset"], told["model"]
        cards = [Path(folder) / CARD, self.folder / CARD, *sorted(self.folder.glob(f"*/{CARD}"))]
        values = {"updates": update, **self.args.method, "lora": start["lora"]}
        adapter = start["lora"] is not None
        ours = _TEXT.format(
            name=Path(trainer.hub_model_id or self.folder).name,
            start=f"`{start['name']}`" + " with an adapter" * adapter,
            title=trainer._paper["title"],
            paper=trainer._paper["id"],
            library="peft" if adapter else "transformers",
            loader="AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM",
            where=trainer.hub_model_id or folder,
            format=trainer.tokens.describe(trainer.example),
            curve=curve_block(update, known_curve(cards, update)),
            settings="\n".join(f"| `{name}` | {value} |" for name, value in values.items()),
            data=f"{data['problems'] or 'A stream of'} problems. {data['source']} (sha256 of the "
            f"problems: `{data['sha256']}`)",
        )
        card.text = ours + card.text[card.text.index("## Training procedure") :]
        card.save(Path(folder) / CARD)

    # --- rollouts --------------------------------------------------------------------------------

    def log_generation(
        self, mode: str, leaf_scores: Tensor, numbers: TreeNumbers, group: int
    ) -> None:
        """Tell scores, lengths and format of N thinkings, and what baselines explain of returns.

        `variance/corr/BASELINE/BUDGET` and `variance/ratio/BASELINE/BUDGET` are the paper's figure
        3. `variance/reached/BUDGET` is the share of thinkings that they are taken over; a run that
        lacks it was written when they were taken over all.

        Args:
            mode: `train` or `eval`.
            leaf_scores: (N, J, S) before any length penalty, NaN where the verifiers abstained.
            numbers: what was counted on the same trees.
            group: thinkings of a problem.
        """
        scores = leaf_scores.nanmean(dim=2)
        numbers = TreeNumbers(*(counted.double() for counted in numbers))
        lengths = numbers.cuts[:, -1]
        prior = scores.new_tensor(self.args.budget_prior.weights)
        known = scores.nan_to_num(-torch.inf)
        over = (known.max(dim=1).values > known[:, -1]) & ~scores[:, -1].isnan()
        told = {
            "anytime_accuracy": prior_mean(scores, prior).nanmean(),
            "uniform_accuracy": prior_mean(scores, torch.ones_like(prior)).nanmean(),
            "final_accuracy": scores[:, -1].nanmean(),
            "format_rate": numbers.formatted.mean(),
            "abstained": leaf_scores.isnan().double().mean(),
            "thinking/length": lengths.mean(),
            "thinking/length_max": lengths.max(),
            "thinking/unfinished": (numbers.ends == ENDS.index("length")).double().mean(),
            "thinking/eos": (numbers.ends == ENDS.index("eos")).double().mean(),
            "thinking/overthinking": over.double().mean(),
            "thinking/overthinking_count": over.sum(),
            "summary/length": numbers.summary_tokens.mean(),
            "summary/finished": numbers.finished.mean(),
            "tokens/thinking": lengths.sum(),
            "tokens/summary": numbers.summary_tokens.sum(),
            "score": scores.nanmean(dim=0),
        }
        reached = advantages.reaches_budgets(numbers.cuts.unflatten(0, (-1, group)))
        explained = advantages.variance_diagnostics(
            scores.unflatten(0, (-1, group)), prior, self.args.budgets, self.args.discount, reached
        )
        for name, (correlation, ratio) in explained.items():
            told |= {f"variance/corr/{name}": correlation, f"variance/ratio/{name}": ratio}
        told["variance/reached"] = reached.double().mean((0, 1))
        flat: dict[str, Tensor] = {}
        for name, value in told.items():
            named = zip(self.args.budgets, value, strict=True) if value.ndim else ()
            flat |= {f"{name}/{budget}": v for budget, v in named} or {name: value}
        values = torch.stack([value.double() for value in flat.values()])
        metrics = dict(zip(flat, values.tolist(), strict=True))  # one transfer from the device
        self.tell(mode, metrics)
        if self.args.check_format:
            self.trainer.tokens.warn_of_eos(metrics["thinking/eos"])
        for name in MISLEADING:
            self.trainer._metrics[mode].pop(name, None)
        if mode == "train":
            for kind in ("thinking", "summary"):
                self.counters[f"total/{kind}_tokens"] += metrics[f"tokens/{kind}"]

    def keep_trees(self, trees: Sequence[Tree], first: int, numbers: Mapping[str, Tensor]) -> None:
        """Write the trees of two problems each `save_rollouts_steps` updates, before the update.

        All processes call this.

        Args:
            trees: of this process.
            first: place of its first tree among those of all processes.
            numbers: of all processes' trees, as `credit` gives them.
        """
        args, tokens, step = self.args, self.trainer.tokens, self.trainer.state.global_step + 1
        each = args.num_summaries
        if not args.saves_rollouts_at(step):
            return
        chosen = chosen_groups(numbers["returns"])
        rows = []
        for place, tree in enumerate(trees, start=first):
            problem, sample = divmod(place, args.num_generations)
            if problem in chosen:
                row = {name: value[problem, sample].tolist() for name, value in numbers.items()}
                thinking, ends = text_and_ends(tokens, tree.thinking)
                said = [tokens.decode(leaf.summary) for leaf in tree.leaves]
                row |= {
                    "problem": problem,
                    "sample": sample,
                    "prompt": tokens.tokenizer.decode(tree.prompt, skip_special_tokens=False),
                    "thinking": thinking,
                    "token_ends": ends,
                    "tokens": len(tree.thinking),
                    "end": tree.end,
                    "summaries": [said[i : i + each] for i in range(0, len(said), each)],
                }
                rows.append(row)
        rows = gather_object(rows)  # a group may straddle processes
        if self.trainer.accelerator.is_main_process:
            rows.sort(key=lambda row: (chosen.index(row["problem"]), row["sample"]))
            settings = {
                "budgets": args.budgets,
                "prior": list(args.budget_prior.weights),
                "baseline": args.baseline,
                "discount": args.discount,
                "summary_weights": list(args.summary_weights),
                "summary_weighting": args.summary_weighting,
                "length_penalty": args.length_penalty,
                "methods": {name: words for name, (words, _) in advantages.BASELINES.items()},
            }
            write_rollouts(args.output_dir, step, settings, rows)
