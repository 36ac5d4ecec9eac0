"""Weights that are shared out over processes (FSDP, DeepSpeed), where sampling needs them whole.

Thinkings are of different lengths, so processes take different numbers of forward passes: a layer
that is gathered at each pass would wait for processes that are done.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from trl import GRPOTrainer
from trl.distributed import DistributedBackend
from trl.models.utils import unwrap_model_for_generation


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


def whole_value(value: Any) -> Any:
    """A number that FSDP holds in parts, as each process's own. All processes call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value
