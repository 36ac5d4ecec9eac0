"""Weights shared out over processes, and rollouts by vLLM whose log-probs are checked.

TRL starts vLLM, sends it the weights and puts it to sleep (`trl.generation.vllm_generation`); here
its `generate` is called twice, for the thinkings and for the summaries on their cached prefixes.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from trl import GRPOTrainer
from trl.distributed import DistributedBackend
from trl.models.utils import unwrap_model_for_generation

from anytime_lab.engines.base import Continuation, Engine, Prefix, Sampling


def check_sharding(trainer: GRPOTrainer) -> None:
    """Refuse settings under which processes would wait for ever, or a reference would be noise.

    Raises:
        ValueError: FSDP 1, or ZeRO-3 that does not gather, would sample from the sharded model; or
            FSDP would shard a reference model that only one process has loaded.
    """
    backend = DistributedBackend(trainer.accelerator)
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if trainer.ref_model is not None and plugin and plugin.cpu_ram_efficient_loading:
        raise ValueError(
            f"beta is {trainer.args.beta} with fsdp_cpu_ram_efficient_loading: true: TRL shards a "
            "reference model without sending its weights from the one process that has loaded "
            "them. Set fsdp_cpu_ram_efficient_loading: false in the accelerate settings, or beta=0."
        )
    if trainer.use_vllm:
        return
    if backend.fsdp_version == 1:
        raise ValueError(
            "fsdp_version is 1, which cannot keep the weights whole while rollouts are sampled. "
            "Set fsdp_version: 2 in the accelerate settings, or use_vllm=True."
        )
    if backend.is_zero3 and not trainer.args.ds3_gather_for_generation:
        raise ValueError(
            "ds3_gather_for_generation is False under DeepSpeed ZeRO-3: processes whose thinkings "
            "are of different lengths would wait for each other for ever. Leave it True, or set "
            "use_vllm=True."
        )


@contextlib.contextmanager
def whole_model(trainer: GRPOTrainer) -> Iterator[torch.nn.Module]:
    """The model of a trainer with all of its weights on each process, and without gradients."""
    with (
        unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
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
            plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
            for module in shards:
                module.reshard()
                module.set_reshard_after_forward(plugin.reshard_after_forward, recurse=False)


class LogprobMismatch(UserWarning):
    """The engine that samples and the model that trains are not the same policy."""


class TrainersEngine(Engine):
    """The vLLM that TRL holds."""

    def __init__(self, trainer: Any):
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


def check_logprobs(trainer: Any, batch: dict[str, Any], mode: str) -> None:
    """Compare vLLM's log-probs of sampled tokens with the trainer's; warn where they differ.

    Log-probs that drift apart mean that rollouts come from another policy than the one that is
    trained: weights that did not arrive (such as a head tied to the embeddings), another precision,
    or a log-prob at another temperature. Nothing else would show it.

    Args:
        trainer: A `BRPOTrainer` that still knows the layout of the rows; without `use_vllm`
            nothing is compared.
        batch: What TRL made of the generation.
        mode: `train` or `eval`.
    """
    steps = trainer.args.check_logprobs_steps
    if not trainer.use_vllm or not steps or trainer.state.global_step % steps:
        return
    trained = batch.get("old_per_token_logps")
    if trained is None:  # TRL needs them for its own correction only
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        columns, size = batch["completion_ids"].shape[1], trainer.args.per_device_train_batch_size
        score = trainer._get_per_token_logps_and_entropies
        with torch.no_grad():
            trained = score(trainer.model, ids, mask, columns, size)[0]
    sampled = batch["sampling_per_token_logps"]
    counted = (batch["completion_mask"] * batch["tool_mask"]).bool() & ~sampled.isnan()
    apart = torch.where(counted, trained - sampled, 0.0).abs().double()
    told = torch.stack([apart.sum(), counted.sum().double(), apart.max()])
    total, count, largest = trainer.accelerator.gather(told[None]).unbind(dim=1)
    mean, largest = (total.sum() / count.sum().clamp(min=1)).item(), largest.max().item()
    values = {"logprobs/difference_mean": mean, "logprobs/difference_max": largest}
    for name, value in values.items():
        trainer._metrics[mode][name].append(value)
    if mode == "train":
        trainer._recorder.line |= values
    tolerance = trainer.args.logprobs_tolerance
    if not mean <= tolerance and trainer.accelerator.is_main_process:
        warnings.warn(
            f"STEP {trainer.state.global_step}: vLLM's log-probs differ from the trainer's by "
            f"{mean:.3g} nats a token on average (largest {largest:.3g}; logprobs_tolerance is "
            f"{tolerance:g}). The rollouts come from another policy than the one that is trained: "
            "probably weights did not reach vLLM, or it runs in another precision. Do not trust "
            "this run before it is explained; without vLLM (use_vllm=False) the difference is 0.",
            LogprobMismatch,
            stacklevel=2,
        )
