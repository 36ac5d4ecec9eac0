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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather
from datasets import Dataset, IterableDataset
from safetensors import SafetensorError
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState
from transformers.trainer_utils import rotate_checkpoints
from transformers.utils.notebook import NotebookProgressCallback
from trl import GRPOTrainer
from trl.data_utils import is_conversational
from trl.models.utils import unwrap_model_for_generation

from anytime_lab.engines.base import Continuation, Engine, Prefix, Sampling
from anytime_lab.engines.hf import HFEngine
from anytime_lab.page import redacted
from anytime_lab.store.files import RunFolderError, only_writer
from anytime_lab.train import advantages, checks, recording, scoring
from anytime_lab.train.config import BRPOConfig
from anytime_lab.tree import PADDING, Tree, pack

logger = logging.getLogger(__name__)


class DivergedError(ArithmeticError):
    """The loss or the gradient is infinite or no number; the last checkpoint is whole."""

    _render_traceback_ = RunFolderError._render_traceback_  # without the frames of libraries


class StoppedByHandError(KeyboardInterrupt):
    """Training was interrupted, by Ctrl-C or by a notebook's stop button."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class LogprobMismatch(UserWarning):
    """The engine that samples and the model that trains are not the same policy."""


class TrainersEngine(Engine):
    """The vLLM that TRL holds: TRL starts it, sends it the weights and puts it to sleep.

    Its `generate` is called twice, for the thinkings and for the summaries on their cached
    prefixes.
    """

    def __init__(self, trainer: GRPOTrainer):
        self.vllm, self.tokens = trainer.vllm_generation, trainer.tokens
        training = trainer.model.training
        self.group = trainer.num_generations if training else trainer.num_generations_eval

    def complete(
        self, prefixes: list[Prefix], limit: int, thinks: bool, sampling: Sampling
    ) -> list[Continuation]:
        """See `Engine.complete`; TRL has told vLLM how to sample."""
        count = self.group if thinks else prefixes[0].count  # neighbours that share a prefix
        rows = [list(prefix.ids) for prefix in prefixes for _ in range(prefix.count)]
        vllm = self.vllm
        before = vllm.max_completion_length, vllm.generation_kwargs, vllm.enable_sleep_mode
        vllm.max_completion_length = limit
        vllm.generation_kwargs = self.tokens.stops(thinks)
        # After thinkings a sleeping engine stays awake: TRL puts it to sleep after each `generate`,
        # which between the phases would throw the cache of the thinkings away, and send all
        # weights a second time.
        if thinks and vllm.mode == "colocate" and vllm.enable_sleep_mode:
            if vllm._llm_weights_sleeping:
                vllm.sync_weights()
            vllm.llm.wake_up(tags=["kv_cache"])
            vllm.enable_sleep_mode = False
        try:
            _, sampled, logprobs, _ = vllm.generate(rows, None, count)
        finally:
            vllm.max_completion_length, vllm.generation_kwargs, vllm.enable_sleep_mode = before
        return [  # TRL takes NaN as no correction for the token
            Continuation(tuple(ids), tuple(math.nan if at[0] is None else at[0] for at in values))
            for ids, values in zip(sampled, logprobs, strict=True)
        ]


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
    ):
        start = checks.Start(
            model, reward_funcs, args, train_dataset, eval_dataset, processing_class, peft_config
        )
        args = start.args
        super().__init__(
            model=start.model,
            reward_funcs=start.functions,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=start.tokenizer,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        self.rollout_func = _sample_rollouts  # an argument of TRL's, which warns of it
        self.tokens, self.encode_prompt = start.tokens, start.encode
        self.sampling, self.example = start.sampling, start.example
        if self.accelerator.is_main_process:
            forced, left = self.tokens.longest_forced, self.sampling.max_summary_tokens
            room = f"Of max_summary_tokens the forced text takes {forced}, {left} are left."
            print(self.tokens.describe(self.example), room, sep="\n")
        self._check_sharding()
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
        self._recorder = recording.Recorder(self)
        self.add_callback(self._recorder)
        if self.pop_callback(NotebookProgressCallback):
            self.add_callback(recording.ProgressBar)
        self._trees: list[Tree] = []
        self._rows: scoring.TreeRows | None = None  # layout of the rows that are being scored
        self._batch: dict[str, Any] = {}  # of which the loss is being computed
        self._graded: tuple[torch.Tensor, scoring.TreeNumbers] | None = None

    def _check_sharding(self) -> None:
        """Refuse what would make a reference noise, or leave no whole model to sample from."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if self.ref_model is not None and plugin and plugin.cpu_ram_efficient_loading:
            raise ValueError(
                f"beta is {self.args.beta} with fsdp_cpu_ram_efficient_loading: true: TRL shards a "
                "reference model without sending its weights from the one process that has loaded "
                "them. Set fsdp_cpu_ram_efficient_loading: false in the accelerate settings, or "
                "beta=0."
            )
        if self._dist.fsdp_version == 1 and not self.use_vllm:
            raise ValueError(
                "fsdp_version is 1, which cannot keep the weights whole while rollouts are "
                "sampled. Set fsdp_version: 2 in the accelerate settings, or use_vllm=True."
            )

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
            return TrainersEngine(self).sample_trees(*asked)
        with self._whole_model() as model:
            engine = HFEngine(model, self.tokens, batch_size=self.args.rollout_batch_size)
            return engine.sample_trees(*asked)

    @contextlib.contextmanager
    def _whole_model(self) -> Iterator[torch.nn.Module]:
        """The model with all of its weights on each process, and without gradients."""
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            torch.no_grad(),
        ):
            shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
            for module in shards:
                module.set_reshard_after_forward(False, recurse=False)
                module.unshard()
            try:
                yield model
            finally:
                plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
                for module in shards:
                    module.reshard()
                    module.set_reshard_after_forward(plugin.reshard_after_forward, recurse=False)

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
        self._check_logprobs(output, mode)
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
        self._recorder.log_generation(mode, scores, numbers, group)
        if mode == "train":
            prompts = self.accelerator.reduce(output["prompt_mask"].sum())
            self._recorder.counters["total/prompt_tokens"] += prompts.item()
            self._recorder.keep_trees(self._trees, first, told)
        self._trees, self._rows, self._graded = [], None, None
        self._recorder.line["time/rollout"] += time.perf_counter() - start
        return output

    def _check_logprobs(self, batch: dict[str, Any], mode: str) -> None:
        """Compare vLLM's log-probs of sampled tokens with the trainer's; warn where they differ.

        Log-probs that drift apart mean that rollouts come from another policy than the one that is
        trained: weights that did not arrive (such as a head tied to the embeddings), another
        precision, or a log-prob at another temperature. Nothing else would show it.
        """
        steps, tolerance = self.args.check_logprobs_steps, self.args.logprobs_tolerance
        if not self.use_vllm or not steps or self.state.global_step % steps:
            return
        trained = batch.get("old_per_token_logps")
        if trained is None:  # TRL needs them for its own correction only
            ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
            mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
            columns, size = batch["completion_ids"].shape[1], self.args.per_device_train_batch_size
            score = self._get_per_token_logps_and_entropies
            with torch.no_grad():
                trained = score(self.model, ids, mask, columns, size)[0]
        sampled = batch["sampling_per_token_logps"]
        counted = (batch["completion_mask"] * batch["tool_mask"]).bool() & ~sampled.isnan()
        apart = torch.where(counted, trained - sampled, 0.0).abs().double()
        told = torch.stack([apart.sum(), counted.sum().double(), apart.max()])
        total, count, largest = self.accelerator.gather(told[None]).unbind(dim=1)
        mean, largest = (total.sum() / count.sum().clamp(min=1)).item(), largest.max().item()
        named = {"logprobs/difference_mean": mean, "logprobs/difference_max": largest}
        self._recorder.tell(mode, named)
        if not mean <= tolerance and self.accelerator.is_main_process:
            warnings.warn(
                f"STEP {self.state.global_step}: vLLM's log-probs differ from the trainer's by "
                f"{mean:.3g} nats a token on average (largest {largest:.3g}; logprobs_tolerance is "
                f"{tolerance:g}). The rollouts come from another policy than the one that is "
                "trained: probably weights did not reach vLLM, or it runs in another precision. Do "
                "not trust this run before it is explained; without vLLM (use_vllm=False) the "
                "difference is 0.",
                LogprobMismatch,
                stacklevel=2,
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
            for batch in scoring.by_length(batches[start : start + count])
        ]
        return self._buffered_inputs[self._step % len(batches)]

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **not_of_trees
    ):
        """Log-probs and entropies of the last C columns of packed trees; 0 on forced tokens.

        Where a loss skips what has no gradient, the entropy is told by the sampled tokens' own
        log-probs: their mean is the mean entropy's estimate.
        """
        rows, kept = self._rows, self._batch.get("tree_kept")
        if kept is not None:
            rows = rows._replace(trained=rows.trained * (self._batch["advantages"] != 0))
        layout = self.tree_backend, input_ids, attention_mask, rows, kept
        with self.accelerator.autocast():
            log_probs, entropy = scoring.score_rows(
                model, *layout, self._spare_columns, batch_size or len(input_ids)
            )
        if kept is not None:
            sampled = self._batch["sampling_per_token_logps"].nan_to_num(0.0)
            others = self._batch.get("old_per_token_logps", torch.zeros_like(sampled))
            log_probs, entropy = torch.where(rows.trained.bool(), log_probs, others), -sampled
        return log_probs, entropy, None

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
            if path is not None:
                self._recorder.check_same_run()
                step = TrainerState.load_from_json(f"{path}/trainer_state.json").global_step
                self._step = step * self.args.gradient_accumulation_steps
                if not self.args.is_generation_boundary(step):
                    logger.warning(
                        "step %d lies between two generations: its rollouts are sampled again, so "
                        "the run goes on, but not bit by bit as an unbroken one.",
                        step,
                    )
            elif (self._recorder.folder / recording.TRAINING_MANIFEST).exists():
                logger.warning(
                    "%s holds a run, which is begun anew: it goes on from no checkpoint.",
                    self.args.output_dir,
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
            self._recorder.write_card(output_dir or self.args.output_dir)

    def create_model_card(self, *given, **named):
        """TRL's card in `output_dir`, with settings, data, how to load the model, and its curve."""
        super().create_model_card(*given, **named)
        if self.is_world_process_zero():
            self._recorder.write_card(self.args.output_dir)

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
