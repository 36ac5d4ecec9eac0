"""`BRPOTrainer`: TRL's `GRPOTrainer` on rollout trees (BRPO, arXiv 2505.13438).

A row is a tree: one thinking of b_m tokens and the summaries that branch off it at the budgets.
What TRL does stays TRL's: data order, reward functions, reference model, loss, optimiser, logs and
checkpoints. Overridden are its seams: rollouts, rewards, advantages, log-probs of packed trees.
"""

import contextlib
import functools
import logging
import math
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather
from datasets import Dataset, IterableDataset
from safetensors import SafetensorError
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import rotate_checkpoints
from trl import GRPOTrainer
from trl.data_utils import is_conversational

from anytime_lab.engines.hf import HFEngine
from anytime_lab.engines.load import load_tokens, model_path
from anytime_lab.page import redacted
from anytime_lab.prompts import ThinkingFormat, fit_verifier, prompt_ids
from anytime_lab.store.files import RunFolderError, only_writer
from anytime_lab.train import advantages, checks, devices, recording, scoring
from anytime_lab.train.config import BRPOConfig
from anytime_lab.tree import PADDING, Tree, pack

logger = logging.getLogger(__name__)


class DivergedError(ArithmeticError):
    """The loss or the gradient is infinite or no number; the last checkpoint is whole."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]  # in a notebook, without the frames of libraries


class StoppedByHandError(KeyboardInterrupt):
    """Training was interrupted, by Ctrl-C or by a notebook's stop button."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class BRPOTrainer(GRPOTrainer):
    """Trains thinking and summary policy on rollout trees.

    Args:
        model: a causal language model, its name or path, or a PeftModel. A LoRA adapter's folder
            is trained on.
        reward_funcs: a verifier, or what TRL takes: functions (sync or async) of
            `(prompts, completions, **columns)`, sequence classifiers, or a list of them. They are
            called with one row per summary; the completion is the thinking as cut, the forced text
            and the summary, with special tokens kept but for EOS and padding. None abstains.
        args: the settings; `anytime_lab.train.config` has the published ones.
        train_dataset: problems with a `prompt` (text or conversation) and what the rewards need.
        eval_dataset: the same, or a dict of them, for `evaluate`.
        processing_class: the tokenizer; by default the model's.
        reward_processing_classes, callbacks, optimizers, quantization_config, peft_config: as in
            TRL.
        thinking_format: as `args.thinking_format`, or a `ThinkingFormat`; wins over it.

    Raises:
        TypeError, ValueError: before any work, where settings, data, tokenizer and model do not go
            together; the message says the fix.
    """

    _tag_names = ["trl", "grpo", "brpo"]
    _name = "BRPO"
    _paper = {
        "title": "Optimizing Anytime Reasoning via Budget Relative Policy Optimization",
        "id": "2505.13438",
        "citation": (
            "@article{qi2025anytime,\n"
            "    title = {{Optimizing Anytime Reasoning via Budget Relative Policy "
            "Optimization}},\n"
            "    author = {Penghui Qi and others},\n    year   = 2025,\n"
            "    eprint = {arXiv:2505.13438},\n}"
        ),
    }

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any,
        args: BRPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Any] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: Any = None,
        callbacks: list | None = None,
        optimizers: tuple = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        thinking_format: ThinkingFormat | str | dict | None = None,
    ):
        name = model_path(model) if isinstance(model, str) else model.config._name_or_path
        if args is None:
            args = BRPOConfig(f"{name.rstrip('/').split('/')[-1]}-BRPO")
        functions = checks.as_reward_functions(reward_funcs)
        model, model_config, tokenizer = checks.load_start(
            model, name, processing_class, args, peft_config
        )
        self.tokens = load_tokens(model, tokenizer, thinking_format or args.thinking_format)
        fmt, template = self.tokens.fmt, args.chat_template_kwargs
        self.encode_prompt = lambda prompt: prompt_ids(prompt, tokenizer, fmt, template)
        self.sampling = checks.sampling_of(args, self.tokens)
        functions = [fit_verifier(function, self.tokens.fmt) for function in functions]
        checks.check_datasets(
            train_dataset, eval_dataset, functions, model_config, args, self.encode_prompt
        )
        self.example = self.encode_prompt(next(iter(train_dataset))["prompt"])

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
            super().__init__(
                model=model,
                reward_funcs=functions,
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=tokenizer,
                reward_processing_classes=reward_processing_classes,
                callbacks=callbacks,
                optimizers=optimizers,
                quantization_config=quantization_config,
                peft_config=peft_config,
                rollout_func=_sample_rollouts,
            )
        if self.accelerator.is_main_process:
            forced, left = self.tokens.longest_forced, self.sampling.max_summary_tokens
            room = f"Of max_summary_tokens the forced text takes {forced}, {left} are left."
            print(self.tokens.describe(self.example), room, sep="\n")
        devices.check_sharding(self)
        self.tree_backend, reason = scoring.choose_backend(
            self.model, args.tree_backend, args.temperature
        )
        if self.ref_model is not None:
            reference = self.accelerator.unwrap_model(self.ref_model)
            scoring.choose_backend(reference, self.tree_backend, args.temperature)
        logger.info("packed trees are run by the %s backend: %s", self.tree_backend, reason)
        if reason := scoring.why_all_tokens(args):
            logger.warning("every token of a tree is run in an update: %s.", reason)
        self._skips = not reason
        # Several processes exchange gradients after one pass each.
        self._spare_columns = 256 if self.accelerator.num_processes == 1 else sys.maxsize
        self._recorder = recording.StepRecorder(self)
        self.add_callback(self._recorder)
        for callback in list(self.callback_handler.callbacks):
            if type(callback).__name__ == "NotebookProgressCallback":
                self.remove_callback(callback)
                self.add_callback(recording.ProgressBar)
        self._trees: list[Tree] = []
        self._rows: scoring.TreeRows | None = None  # layout of the rows that are being scored
        self._batch: dict[str, Any] = {}  # of which the loss is being computed
        self._graded: tuple[torch.Tensor, scoring.TreeNumbers] | None = None

    # --- rollouts and scores ---------------------------------------------------------------------

    def sample_trees(self, prompts: list[Any]) -> list[Tree]:
        """One tree for each prompt, sampled by the model as it is now (global RNG).

        Args:
            prompts: texts or conversations; a group is the same prompt several times.
        """
        distinct = {repr(prompt): prompt for prompt in prompts}
        encoded = {key: self.encode_prompt(prompt) for key, prompt in distinct.items()}
        asked = [encoded[repr(prompt)] for prompt in prompts], self.args.budgets
        asked = *asked, self.args.num_summaries, self.sampling
        if self.use_vllm:
            return devices.TrainersEngine(self).sample_trees(*asked)
        with devices.whole_model(self) as model:
            engine = HFEngine(model, self.tokens, batch_size=self.args.rollout_batch_size)
            return engine.sample_trees(*asked)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        """Grade every leaf; return the value of each tree per reward function, (W B, F)."""
        start = time.perf_counter()
        budgets, summaries = len(self.args.budgets), self.args.num_summaries
        leaves = budgets * summaries
        token_ids = [
            [*tree.thinking[: leaf.cut], *leaf.forced, *leaf.summary]
            for tree in self._trees
            for leaf in tree.leaves
        ]
        decode = functools.cache(self.tokens.decode)  # in the end most summaries of a cut agree
        texts = [decode(tuple(ids)) for ids in token_ids]
        if is_conversational({"prompt": prompts[0]}):
            texts = [[{"role": "assistant", "content": text}] for text in texts]
        rewards = super()._calculate_rewards(
            [row for row in inputs for _ in range(leaves)],
            [prompt for prompt in prompts for _ in range(leaves)],
            texts,
            token_ids,
        )
        for column, values in self._pending_extra_logs.items():
            if len(values) == len(token_ids):  # TRL's table has one row per tree
                self._pending_extra_logs[column] = [
                    values[i : i + leaves] for i in range(0, len(values), leaves)
                ]
        counted = scoring.count_trees(self._trees, self.tokens, summaries, self.accelerator.device)
        numbers = gather(counted)
        if (infinite := rewards.isinf().any(dim=0)).any():
            name = self.reward_func_names[int(infinite.int().argmax())]
            raise ValueError(
                f"the reward {name!r} is infinite for a summary, so that no mean exists. Return a "
                "finite number, or None to abstain."
            )
        rewards = rewards.view(-1, budgets, summaries, rewards.shape[-1])
        scores = (rewards * self.reward_weights.to(rewards)).nansum(dim=-1)
        scores = scores.masked_fill(rewards.isnan().all(dim=-1), torch.nan)  # all abstained
        if self.args.check_format:
            scores = scores.where((numbers.formatted == 1) | scores.isnan(), 0.0)
        self._graded = scores, numbers
        self._recorder.line["time/scoring"] += time.perf_counter() - start
        prior = rewards.new_tensor(self.args.budget_prior.weights)
        return recording.prior_mean(rewards.nanmean(dim=2).transpose(1, 2), prior)

    def _generate_and_score_completions(self, inputs):
        """TRL's batch, with token advantages (B, C) and the layout of the trees."""
        start = time.perf_counter()
        mode = "train" if self.model.training else "eval"
        output = super()._generate_and_score_completions(inputs)
        devices.check_logprobs(self, output, mode)
        scores, numbers = self._graded
        group = self.num_generations if mode == "train" else self.num_generations_eval
        told = recording.credit(
            scores.unflatten(0, (-1, group)), numbers.cuts.unflatten(0, (-1, group)), self.args
        )
        # What is left of two numbers that are equal but for rounding would be trained on.
        rounding = 1e-6 * scores.nan_to_num(0.0).abs().amax()
        first = self.accelerator.process_index * len(inputs)
        thinking, summary = (
            told[name].where(told[name].abs() > rounding, 0.0).flatten(0, 1)[first:][: len(inputs)]
            for name in (f"advantage_{self.args.baseline}", "summary_advantages")
        )
        rows = self._rows
        output["advantages"] = advantages.token_advantages(
            thinking, summary, rows.leaf, rows.branch, self.args.budgets
        )
        output["tree_leaf"], output["tree_branch"] = rows.leaf, rows.branch
        if mode == "train" and self._skips:
            output["tree_kept"] = scoring.live_columns(output["advantages"], rows)
        self._log_generation(mode, scores, numbers, group)
        if mode == "train":
            prompts = self.accelerator.reduce(output["prompt_mask"].sum())
            self._recorder.counters["total/prompt_tokens"] += prompts.item()
            recording.keep_trees(self, self._trees, first, told)
        self._trees, self._rows, self._graded = [], None, None
        self._recorder.line["time/rollout"] += time.perf_counter() - start
        return output

    # --- packed trees in TRL's loss --------------------------------------------------------------

    def _prepare_inputs(self, generation_batch):
        """TRL's batches; the rows of those that one update takes are parted anew by length."""
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        # bnpo divides by the tokens of a batch, so that it matters which rows share one.
        if self._buffered_inputs is before or not self._skips or self.loss_type == "bnpo":
            return inputs
        batches, count = self._buffered_inputs, self.args.gradient_accumulation_steps
        self._buffered_inputs = [
            batch
            for start in range(0, len(batches), count)
            for batch in scoring.by_length(batches[start : start + count])
        ]
        return self._buffered_inputs[self._step % len(batches)]

    def _get_per_token_logps_and_entropies(
        self,
        model,
        input_ids,
        attention_mask,
        logits_to_keep,
        batch_size=None,
        compute_entropy=False,
        compute_aux_loss=False,
        **multimodal,
    ):
        """Log-probs (and entropies) of the last C columns of packed trees; 0 on forced tokens.

        Where a loss skips what has no gradient, the entropy is told by the sampled tokens' own
        log-probs: their mean is the mean entropy's estimate.
        """
        rows, batch = self._rows, self._batch
        skips = "tree_kept" in batch
        if skips:
            live = rows.trained * (batch["advantages"] != 0)
            rows = rows._replace(trained=live)
        with self.accelerator.autocast():
            scored = scoring.score_rows(
                model,
                self.tree_backend,
                input_ids,
                attention_mask,
                rows,
                batch.get("tree_kept"),
                self._spare_columns,
                batch_size or len(input_ids),
            )
        if not skips:
            return scored.log_probs, scored.entropy if compute_entropy else None, None
        sampled = batch["sampling_per_token_logps"].nan_to_num(0.0)
        others = batch.get("old_per_token_logps", torch.zeros_like(sampled))
        return torch.where(live.bool(), scored.log_probs, others), -sampled, None

    def _compute_loss(self, model, inputs):
        """TRL's loss on packed rows."""
        trained = inputs["completion_mask"] * inputs["tool_mask"]
        self._rows = scoring.TreeRows(inputs["tree_leaf"], inputs["tree_branch"], trained)
        self._batch = inputs
        if model.training:
            kept = inputs.get("tree_kept", inputs["tree_leaf"] != PADDING)
            ran = kept.sum() + inputs["prompt_mask"][kept.any(dim=1)].sum()
            self._recorder.counters["total/packed_tokens"] += self.accelerator.reduce(ran).item()
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._rows, self._batch = None, {}

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One micro-batch; its loss and time go to the step's line."""
        start, line = time.perf_counter(), self._recorder.line
        sampled = line.get("time/rollout", 0.0)
        loss = super().training_step(model, inputs, num_items_in_batch)
        mean = self.accelerator.gather(loss).mean().item()
        self._check_finite("loss", mean)
        line["loss"] += mean
        sampling = line.get("time/rollout", 0.0) - sampled
        line["time/update"] += time.perf_counter() - start - sampling
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if isinstance(norm, DTensor):  # FSDP holds it in parts
            norm = norm.full_tensor()
        self._recorder.line["grad_norm"] = norm
        if norm is not None and not self.args.fp16:  # fp16 scales its loss until it overflows
            self._check_finite("gradient's norm", float(norm))
        return norm

    def _check_finite(self, what: str, value: float) -> None:
        """Stop before an update that would leave no weights to go on from."""
        if not math.isfinite(value):
            raise DivergedError(
                f"training diverged: the {what} is {value} at update {self.state.global_step + 1}. "
                f"The weights of the last checkpoint in {self.args.output_dir} are as they were. "
                f"Begin in a new folder with a learning_rate below {self.args.learning_rate:g}, or "
                "with a max_grad_norm that is smaller."
            )

    # --- records and checkpoints -----------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """Train; as in transformers, but an incomplete checkpoint is never resumed.

        Args:
            resume_from_checkpoint: a folder, or True for the last complete one in `output_dir`.
                Exact (bit-equal to an unbroken run) where new rollouts begin, which is every
                optimiser step unless rollouts are used for several.

        Raises:
            ValueError: there is no such checkpoint, or it lacks a part.
            RunFolderError: the run there was made with other settings, or goes on right now.
            DivergedError: the loss or the gradient is no number any more.
            StoppedByHandError: interrupted; a `KeyboardInterrupt` that a notebook tells in a line.
        """
        alone = only_writer(self.args.output_dir)
        with alone if self.accelerator.is_main_process else contextlib.nullcontext():
            path = recording.checkpoint_to_resume(self.args.output_dir, resume_from_checkpoint)
            self._step, self._buffered_inputs = 0, None
            if path is None and (Path(self.args.output_dir) / recording.TRAINING_MANIFEST).exists():
                logger.warning(
                    "%s holds a run, which is begun anew: it goes on from no checkpoint.",
                    self.args.output_dir,
                )
            if path is not None:
                recording.check_same_run(self)
                step = recording.step_of(path)
                self._step = step * self.args.gradient_accumulation_steps
                if not self.args.is_generation_boundary(step):
                    logger.warning(
                        "step %d lies between two generations: its rollouts are sampled again, so "
                        "the run goes on, but not bit by bit as an unbroken one.",
                        step,
                    )
            self._recorder.resumed_from = path
            try:
                return super().train(resume_from_checkpoint=path, **kwargs)
            except BaseException as error:
                self._recorder.stopped(self.state, error)
                if not isinstance(error, KeyboardInterrupt):
                    raise
                raise StoppedByHandError(
                    f"stopped at update {self.state.global_step}; run the same again to go on from "
                    "the last checkpoint."
                ) from None

    def _run_epoch(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:  # transformers would do one step more
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Save the model with its card; `~` in the folder's name is the home folder."""
        if output_dir is not None:
            output_dir = os.path.expanduser(output_dir)
        super().save_model(output_dir, _internal_call)
        if not _internal_call and self.is_world_process_zero():
            self.create_model_card()
            recording.complete_card(self, output_dir or self.args.output_dir)

    def create_model_card(self, *given, **named):
        """TRL's card in `output_dir`, with settings, data, how to load the model, and its curve."""
        super().create_model_card(*given, **named)
        if self.is_world_process_zero():
            recording.complete_card(self, self.args.output_dir)

    def _save(self, output_dir: str | None = None, state_dict: Any = None):
        """Keep secrets out of `training_args.bin`, where transformers writes all settings."""
        kept = {name: getattr(self.args, name) for name in ("hub_token", "model_init_kwargs")}
        vars(self.args).update(redacted(kept))
        try:
            super()._save(output_dir, state_dict)
        finally:
            vars(self.args).update(kept)

    def _save_checkpoint(self, model, trial):
        """Delete earlier checkpoints only once this one is whole, as transformers does not."""
        args = self.args
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        limit, args.save_total_limit = args.save_total_limit, None
        try:
            if args.should_save:  # of the same step, before the run went back and came here again
                (folder / recording.STATE_FILE).unlink(missing_ok=True)
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # the marker must not precede another rank's files
            if args.should_save:
                recording.mark_complete(folder, {"counters": self._recorder.counters})
        except (OSError, SafetensorError, RuntimeError, RunFolderError) as error:
            last = recording.last_complete_checkpoint(folder.parent)
            kept = f"{last} is whole; training goes on from there" if last else "It begins anew"
            raise RunFolderError(
                f"could not write {folder}: {error}. {kept} once there is space "
                "and the folder can be written. A lower save_total_limit needs less."
            ) from error
        finally:
            args.save_total_limit = limit
        if args.should_save:
            best = self.state.best_model_checkpoint
            rotate_checkpoints(str(folder.parent), limit, best, use_mtime=True)

    def _log_generation(
        self, mode: str, scores: torch.Tensor, numbers: scoring.TreeNumbers, group: int
    ) -> None:
        """Numbers of one generation to TRL's logger and, in training, to the step's line."""
        metrics = recording.generation_metrics(scores, numbers, group, self.args)
        for name, value in metrics.items():
            if not math.isnan(value):  # e.g. the correlation with a baseline that is constant
                self._metrics[mode][name].append(value)
        if self.args.check_format:
            self.tokens.warn_of_eos(metrics["thinking/eos"])
        for name in recording.MISLEADING:
            self._metrics[mode].pop(name, None)
        if mode == "train":
            self._recorder.line |= metrics
            for kind in ("thinking", "summary"):
                self._recorder.counters[f"total/{kind}_tokens"] += metrics[f"tokens/{kind}"]


def _sample_rollouts(prompts: list[Any], trainer: BRPOTrainer) -> dict[str, list]:
    """TRL's `rollout_func`: sample trees and lay each out as one row."""
    start = time.perf_counter()
    trees = trainer.sample_trees(prompts)
    packed = [pack(tree) for tree in trees]
    trainer._trees = trees  # of the generation that TRL is about to score
    trainer._rows = scoring.stack_rows(
        packed, trainer.accelerator.device, trainer.pad_to_multiple_of
    )
    trainer._recorder.line["time/generation"] += time.perf_counter() - start
    return {
        "prompt_ids": [list(tree.prompt) for tree in trees],
        "completion_ids": [list(row.ids) for row in packed],
        "logprobs": [list(row.logprobs) for row in packed],
        "env_mask": [list(row.trained) for row in packed],
    }
