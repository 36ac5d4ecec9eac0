"""`BRPOTrainer`: TRL's `GRPOTrainer` on rollout trees (BRPO, arXiv 2505.13438).

A row is a tree: one thinking of b_m tokens and the summaries that branch off it at the budgets.
What TRL does stays TRL's: data order, reward functions, reference model, loss, optimiser, logs and
checkpoints. Overridden are its seams: rollouts, rewards, advantages, log-probs of packed trees.
"""

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
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOTrainer
from trl.data_utils import is_conversational

from anytime_lab.engines.hf import HFEngine
from anytime_lab.prompts import ThinkingFormat, describe_format, warn_of_eos
from anytime_lab.store.files import only_writer
from anytime_lab.train.advantages import (
    reaches_budgets,
    summary_advantages,
    thinking_advantages,
    token_advantages,
    variance_diagnostics,
)
from anytime_lab.train.checks import prepare_run
from anytime_lab.train.config import BRPOConfig
from anytime_lab.train.devices import (
    check_logprobs,
    check_sharding,
    sample_trees_by_vllm,
    whole_model,
    whole_value,
)
from anytime_lab.train.recording import (
    MISLEADING,
    ProgressBar,
    RolloutRecorder,
    StepRecorder,
    check_same_run,
    checkpoint_to_resume,
    combine_rewards,
    describe_trained,
    generation_metrics,
    prior_mean,
    step_of,
    variance_metrics,
    whole_checkpoint,
)
from anytime_lab.train.scoring import (
    ScoredRows,
    TreeNumbers,
    TreeRows,
    by_length,
    check_head,
    choose_backend,
    count_trees,
    leaf_texts,
    leaf_token_ids,
    live_columns,
    score_live_rows,
    score_rows,
    stack_rows,
    trim_columns,
    why_all_tokens,
)
from anytime_lab.tree import PackedTree, Tree, pack

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
        reward_processing_classes: as in TRL.
        callbacks: as in TRL.
        optimizers: as in TRL.
        quantization_config: as in TRL.
        peft_config: as in TRL.
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
        setup = prepare_run(
            model,
            reward_funcs,
            args,
            train_dataset,
            eval_dataset,
            processing_class,
            peft_config,
            thinking_format,
        )
        model, args, functions = setup.model, setup.args, setup.functions
        self.tokens, self.encode_prompt = setup.tokens, setup.encode_prompt
        self.sampling = setup.sampling

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
            super().__init__(
                model=model,
                reward_funcs=functions,
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=setup.tokenizer,
                reward_processing_classes=reward_processing_classes,
                callbacks=callbacks,
                optimizers=optimizers,
                quantization_config=quantization_config,
                peft_config=peft_config,
                rollout_func=_sample_rollouts,
            )
        if self.accelerator.is_main_process:
            print(describe_format(self.tokens, setup.example))
        check_sharding(self)
        check_head(self.model, args.temperature)
        backend = choose_backend(self.model, args.tree_backend)
        if self.ref_model is not None:
            choose_backend(self.accelerator.unwrap_model(self.ref_model), backend.name)
        self.tree_backend = backend.name
        logger.info("packed trees are run by the %s backend: %s", backend.name, backend.reason)
        if reason := why_all_tokens(args):
            logger.warning("every token of a tree is run in an update: %s.", reason)
        self._skips = not reason
        # Several processes exchange gradients after one pass each.
        self._spare_columns = 256 if self.accelerator.num_processes == 1 else sys.maxsize
        device = self.accelerator.device
        self._prior = torch.tensor(args.budget_prior.weights, device=device)
        self._summary_prior = torch.tensor(args.summary_weights, device=device)
        self._recorder = StepRecorder(
            args.output_dir,
            self._metrics["train"],
            train_dataset,
            describe_trained(self.accelerator.unwrap_model(self.model)),
        )
        self.add_callback(self._recorder)
        for callback in list(self.callback_handler.callbacks):
            if type(callback).__name__ == "NotebookProgressCallback":
                self.remove_callback(callback)
                self.add_callback(ProgressBar)
        self._rollout_recorder = RolloutRecorder(args, setup.tokenizer, self.tokens)
        self.add_callback(self._rollout_recorder)
        self._trees: list[Tree] = []
        self._rows: TreeRows | None = None  # layout of the rows that are being scored
        self._batch: dict[str, Any] = {}  # of which the loss is being computed
        self._graded: tuple[torch.Tensor, TreeNumbers] | None = None

    def keep_rollouts(self, trees: list[Tree], packed: list[PackedTree]) -> None:
        """Remember the trees of the generation that TRL is about to score."""
        self._trees = trees
        self._rows = stack_rows(packed, self.accelerator.device, self.pad_to_multiple_of)

    # --- rollouts and scores ---------------------------------------------------------------------

    def sample_trees(self, prompts: list[Any]) -> list[Tree]:
        """One tree for each prompt, sampled by the model as it is now (global RNG).

        Args:
            prompts: texts or conversations; a group is the same prompt several times.
        """
        encoded: dict[str, list[int]] = {}
        ids = []
        for prompt in prompts:
            key = repr(prompt)
            if key not in encoded:
                encoded[key] = self.encode_prompt(prompt)
            ids.append(encoded[key])
        if self.use_vllm:
            return sample_trees_by_vllm(self, ids)
        with whole_model(self) as model:
            engine = HFEngine(model, self.tokens, batch_size=self.args.rollout_batch_size)
            return engine.sample_trees(
                ids, self.args.budgets, self.args.num_summaries, self.sampling
            )

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        """Grade every leaf; return the value of each tree per reward function, (W B, F)."""
        start = time.perf_counter()
        budgets, summaries = len(self.args.budgets), self.args.num_summaries
        leaves = budgets * summaries
        token_ids = leaf_token_ids(self._trees)
        texts = leaf_texts(token_ids, self._tokenizer, self.tokens.eos_ids)
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
        counted = count_trees(self._trees, self.tokens, budgets, summaries, self.accelerator.device)
        numbers = TreeNumbers.from_flat(gather(counted.flat()), budgets, summaries)
        if (infinite := rewards.isinf().any(dim=0)).any():
            name = self.reward_func_names[int(infinite.int().argmax())]
            raise ValueError(
                f"the reward {name!r} is infinite for a summary, so that no mean exists. Return a "
                "finite number, or None to abstain."
            )
        rewards = rewards.view(-1, budgets, summaries, rewards.shape[-1])
        scores = combine_rewards(rewards, self.reward_weights)
        if self.args.check_format:
            scores = scores.where((numbers.formatted == 1) | scores.isnan(), 0.0)
        self._graded = scores, numbers
        self._recorder.add("time/scoring", time.perf_counter() - start)
        return prior_mean(rewards.nanmean(dim=2).transpose(1, 2), self._prior)

    def _generate_and_score_completions(self, inputs):
        """TRL's batch, with token advantages (B, C) and the layout of the trees."""
        start = time.perf_counter()
        mode = "train" if self.model.training else "eval"
        output = super()._generate_and_score_completions(inputs)
        check_logprobs(self, output, mode)
        scores, numbers = self._graded
        group = self.num_generations if mode == "train" else self.num_generations_eval
        thinking, summary = self._advantages(scores, numbers, group)
        first = self.accelerator.process_index * len(inputs)
        own = slice(first, first + len(inputs))
        rows = self._rows
        output["advantages"] = token_advantages(
            thinking.flatten(0, 1)[own],
            summary.flatten(0, 1)[own],
            rows.leaf,
            rows.branch,
            self.args.budgets,
        )
        output["tree_leaf"], output["tree_branch"] = rows.leaf, rows.branch
        if mode == "train" and self._skips:
            output["tree_kept"] = live_columns(output["advantages"], rows)
        self._log_generation(mode, scores, numbers, group)
        if mode == "train":
            self._rollout_recorder.record(self._trees, first, scores, numbers.cuts)
        self._trees, self._rows, self._graded = [], None, None
        self._recorder.add("time/rollout", time.perf_counter() - start)
        return output

    def _advantages(
        self, scores: torch.Tensor, numbers: TreeNumbers, group: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Advantages of all processes' trees: thinking (P, G, J) and summaries (P, G, J, S).

        What is left of two numbers that are equal but for rounding is 0: it would be trained on.
        """
        cuts = numbers.cuts.unflatten(0, (-1, group))
        args = self.args
        leaf = args.penalised(scores.unflatten(0, (-1, group)), cuts)
        thinking = thinking_advantages(
            leaf.nanmean(dim=3), self._prior, args.budgets, args.baseline, args.discount
        )
        summary = summary_advantages(leaf, cuts, self._summary_prior)
        rounding = 1e-6 * leaf.nan_to_num(0.0).abs().amax()
        return thinking.where(thinking.abs() > rounding, 0.0), summary.where(
            summary.abs() > rounding, 0.0
        )

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
            for batch in by_length(batches[start : start + count])
        ]
        return self._buffered_inputs[self._step % len(batches)]

    def _score(self, model, input_ids, attention_mask, rows: TreeRows) -> ScoredRows:
        with self.accelerator.autocast():
            return score_rows(
                model,
                self.tree_backend,
                input_ids,
                attention_mask,
                rows,
                self.accelerator.unwrap_model,
            )

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
        if "tree_kept" in batch:
            sampled = batch["sampling_per_token_logps"].nan_to_num(0.0)
            others = batch.get("old_per_token_logps", torch.zeros_like(sampled))
            logps = score_live_rows(
                functools.partial(self._score, model),
                input_ids,
                attention_mask,
                rows,
                batch["tree_kept"],
                batch["advantages"],
                others,
                self._spare_columns,
            )
            return logps, -sampled, None
        size = batch_size or len(input_ids)
        logps, entropies = [], []
        for start in range(0, len(input_ids), size):
            end = min(start + size, len(input_ids))
            scored = self._score(
                model, input_ids[start:end], attention_mask[start:end], rows.rows(start, end)
            )
            logps.append(scored.log_probs)
            entropies.append(scored.entropy)
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None

    def _compute_loss(self, model, inputs):
        """TRL's loss on the columns that these rows use."""
        inputs = trim_columns(inputs)
        mask = inputs["completion_mask"] * inputs["tool_mask"]
        self._rows, self._batch = TreeRows(inputs["tree_leaf"], inputs["tree_branch"], mask), inputs
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._rows, self._batch = None, {}

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One micro-batch; its loss and time go to the step's line."""
        start = time.perf_counter()
        sampling = self._recorder.value("time/rollout")
        loss = super().training_step(model, inputs, num_items_in_batch)
        mean = self.accelerator.gather(loss).mean().item()
        self._check_finite("loss", mean)
        self._recorder.add_loss(mean)
        sampling -= self._recorder.value("time/rollout")
        self._recorder.add("time/update", time.perf_counter() - start + sampling)
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        norm = whole_value(super()._get_grad_norm(model, grad_norm=grad_norm))
        self._recorder.note({"grad_norm": norm})
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
        if not self.accelerator.is_main_process:
            return self._train(resume_from_checkpoint, **kwargs)
        with only_writer(self.args.output_dir):
            return self._train(resume_from_checkpoint, **kwargs)

    def _train(self, resume_from_checkpoint: str | bool | None, **kwargs):
        path = checkpoint_to_resume(self.args.output_dir, resume_from_checkpoint)
        self._step, self._buffered_inputs = 0, None
        if path is not None:
            model = self.accelerator.unwrap_model(self.model)
            check_same_run(self.args, self.train_dataset, model)
            step = step_of(path)
            self._step = step * self.args.gradient_accumulation_steps
            if not self.args.is_generation_boundary(step):
                logger.warning(
                    "step %d lies between two generations: its rollouts are sampled again, so the "
                    "run goes on, but not bit by bit as an unbroken one.",
                    step,
                )
        self._recorder.resumed_from = path
        try:
            return super().train(resume_from_checkpoint=path, **kwargs)
        except KeyboardInterrupt as error:
            self._recorder.stopped(self.state, error)
            raise StoppedByHandError(
                f"stopped at update {self.state.global_step}; run the same again to go on from the "
                "last checkpoint."
            ) from None
        except BaseException as error:
            self._recorder.stopped(self.state, error)
            raise

    def _run_epoch(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:  # transformers would do one step more
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Save the model; `~` in the folder's name is the home folder, as everywhere."""
        if output_dir is not None:
            output_dir = os.path.expanduser(output_dir)
        super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model, trial):
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        with whole_checkpoint(folder, self.args, self.state.best_model_checkpoint):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # the marker must not precede another rank's files
            if self.args.should_save:
                self._recorder.save(folder)

    def _log_generation(
        self, mode: str, scores: torch.Tensor, numbers: TreeNumbers, group: int
    ) -> None:
        """Numbers of one generation to TRL's logger and, in training, to the step's line."""
        metrics = generation_metrics(scores, numbers, self._prior, self.args.budgets)
        by_problem = scores.nanmean(dim=2).unflatten(0, (-1, group))
        reached = reaches_budgets(numbers.cuts.unflatten(0, (-1, group)))
        explained = variance_diagnostics(
            by_problem, self._prior, self.args.budgets, self.args.discount, reached
        )
        metrics |= variance_metrics(explained, reached, self.args.budgets)
        for name, value in metrics.items():
            if not math.isnan(value):  # e.g. the correlation with a baseline that is constant
                self._metrics[mode][name].append(value)
        if self.args.check_format:
            warn_of_eos(metrics["thinking/eos"], self.tokens.fmt)
        for name in MISLEADING:
            self._metrics[mode].pop(name, None)
        if mode == "train":
            self._recorder.note(metrics)
            self._recorder.count(
                {
                    "total/thinking_tokens": metrics["tokens/thinking"],
                    "total/summary_tokens": metrics["tokens/summary"],
                }
            )


def _sample_rollouts(prompts: list[Any], trainer: BRPOTrainer) -> dict[str, list]:
    """TRL's `rollout_func`: sample trees and lay each out as one row."""
    start = time.perf_counter()
    trees = trainer.sample_trees(prompts)
    packed = [pack(tree) for tree in trees]
    trainer.keep_rollouts(trees, packed)
    trainer._recorder.add("time/generation", time.perf_counter() - start)
    return {
        "prompt_ids": [list(tree.prompt) for tree in trees],
        "completion_ids": [list(row.ids) for row in packed],
        "logprobs": [list(row.logprobs) for row in packed],
        "env_mask": [list(row.trained) for row in packed],
    }
