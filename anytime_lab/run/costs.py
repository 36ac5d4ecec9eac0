"""What a training run costs, from shapes alone: tokens, FLOPs, memory, disk and time.

Tokens are exact for given lengths. FLOPs count the multiplications and additions of all matrix
products, attention over whole blocks (no saving for causality), a backward pass as two forward
ones. Memory is what PyTorch keeps: weights, gradients, Adam's two moments, and saved activations of
a micro-batch or the key-value cache of the rollouts, whichever is larger.
"""

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

SHARDINGS = ("none", "zero2", "zero3")
GIB = 2**30


@dataclass(frozen=True)
class Hardware:
    """One device, as its data sheet has it, and how many of them there are.

    Attributes:
        name: For the report.
        devices: Processes, one device each.
        memory: Bytes of one device.
        flops: Dense bf16 FLOP/s of one device.
        bandwidth: Bytes/s of its memory.
        utilisation: Share of `flops` that training reaches; 0.35 is usual for a few billion
            parameters.
    """

    name: str
    devices: int
    memory: float
    flops: float
    bandwidth: float
    utilisation: float = 0.35


# Memory GiB, dense bf16 TFLOP/s, TB/s: the makers' data sheets.
DEVICES = {
    "h200": (141e9, 989e12, 4.8e12),
    "h100": (80e9, 989e12, 3.35e12),
    "a100": (80e9, 312e12, 2.0e12),
    "a100-40g": (40e9, 312e12, 1.55e12),
    "l40s": (48e9, 362e12, 0.86e12),
    "rtx4090": (24e9, 165e12, 1.0e12),
}


@dataclass(frozen=True)
class ModelSize:
    """What of a model decides its costs."""

    parameters: int
    body: int  # parameters of the blocks' matrices: each token goes through all of them
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    positions: int | None

    @classmethod
    def of(cls, config: PretrainedConfig) -> "ModelSize":
        """Count the parameters of a model without its weights."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        text = config.get_text_config()
        embeddings = {id(p) for p in model.get_input_embeddings().parameters()}
        head = model.get_output_embeddings()
        embeddings |= {id(p) for p in head.parameters()} if head is not None else set()
        body = sum(p.numel() for p in model.parameters() if p.ndim > 1 and id(p) not in embeddings)
        heads = text.num_attention_heads
        return cls(
            parameters=sum(p.numel() for p in model.parameters()),
            body=body,
            hidden=text.hidden_size,
            inner=text.intermediate_size,
            layers=text.num_hidden_layers,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_size=getattr(text, "head_dim", None) or text.hidden_size // heads,
            vocabulary=text.vocab_size,
            positions=getattr(text, "max_position_embeddings", None),
        )


@dataclass(frozen=True)
class TreeShape:
    """Mean lengths of a rollout tree, in tokens."""

    prompt: float
    thinking: float
    cuts: tuple[float, ...]  # thinking kept at each budget
    summaries: int  # per budget
    forced: float
    summary: float

    @property
    def leaf(self) -> float:
        """Forced text and summary."""
        return self.forced + self.summary

    @property
    def trained(self) -> float:
        """Sampled tokens, which are also those that are trained."""
        return self.thinking + len(self.cuts) * self.summaries * self.summary

    @property
    def packed(self) -> float:
        """The row: prompt, thinking, leaves."""
        return self.prompt + self.thinking + len(self.cuts) * self.summaries * self.leaf

    @property
    def copied(self) -> float:
        """Keys that the segments of leaves copy: each takes the trunk up to its cut and itself."""
        return sum(self.prompt + cut + self.summaries * self.leaf for cut in self.cuts)

    @property
    def pairs(self) -> float:
        """(query, key) pairs of the tree attention, in whole blocks."""
        trunk = self.prompt + self.thinking
        segment = self.summaries * self.leaf
        return trunk**2 + sum(segment * (self.prompt + cut + segment) for cut in self.cuts)


def forward_flops(size: ModelSize, shape: TreeShape, scored: float) -> float:
    """FLOPs of one packed row through the model, with logits at `scored` positions."""
    attention = 4 * size.layers * size.heads * size.head_size * shape.pairs
    return 2 * size.body * shape.packed + attention + 2 * size.hidden * size.vocabulary * scored


def update_flops(
    size: ModelSize, shape: TreeShape, checkpointing: bool, scored: float | None = None
) -> float:
    """FLOPs of a forward and a backward pass over one row."""
    scored = shape.trained if scored is None else scored
    forward = forward_flops(size, shape, scored)
    again = forward_flops(size, shape, 0) if checkpointing else 0.0
    return 3 * forward + again


def rollout_flops(size: ModelSize, shape: TreeShape) -> float:
    """FLOPs of sampling one tree on a cache: each token once, its leaves on the trunk's cache."""
    per_pair = 4 * size.layers * size.heads * size.head_size
    trunk = shape.prompt + shape.thinking
    leaf_pairs = sum(
        shape.summaries * shape.leaf * (shape.prompt + cut + shape.leaf / 2) for cut in shape.cuts
    )
    pairs = trunk**2 / 2 + leaf_pairs
    head = 2 * size.hidden * size.vocabulary * shape.trained
    return 2 * size.body * shape.packed + per_pair * pairs + head


def activation_bytes(
    size: ModelSize, shape: TreeShape, rows: int, width: int, checkpointing: bool, scored: float
) -> float:
    """Bytes kept for the backward pass of packed rows (SDPA, gated MLP, RMSNorm).

    Args:
        rows: Of a micro-batch.
        width: Bytes of an activation.
        checkpointing: Keep the inputs of the blocks, and one block at a time.
        scored: Positions of a row that get logits.
    """
    q, kv = size.heads * size.head_size, size.kv_heads * size.head_size
    # Norms keep their input in fp32 and the normalised value; q and k before and after rotation,
    # keys and values repeated to all heads, the output; gate, up, their product and its input.
    token = width * (4 * size.hidden + 9 * q + 3 * kv + 4 * size.inner) + 8 * size.hidden
    block = shape.packed * token + shape.copied * 2 * width * q
    inputs = size.layers * shape.packed * width * size.hidden
    kept = inputs + block if checkpointing else size.layers * block
    # The masks of the leaves take a byte a pair and serve all layers.
    return rows * (kept + shape.pairs + 2 * width * size.hidden * scored)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    cache: float

    @property
    def total(self) -> float:
        """Peak: updates and rollouts take turns."""
        standing = self.weights + self.gradients + self.optimizer
        return standing + max(self.activations, self.cache)


def memory(
    size: ModelSize,
    longest: TreeShape,
    *,
    rows: int,
    rollout_rows: int,
    weight_width: int,
    compute_width: int,
    trainable: int | None = None,
    reference: bool = False,
    checkpointing: bool = False,
    sharding: str = "none",
    devices: int = 1,
) -> Memory:
    """Memory of one device.

    Args:
        size: Of the model.
        longest: The longest trees that can come.
        rows: Trees in one forward and backward pass.
        rollout_rows: Trees sampled at a time.
        weight_width: Bytes of a stored weight.
        compute_width: Bytes of an activation; narrower than the weights under autocast.
        trainable: Trained parameters; all if None.
        reference: Whether a second model stands beside it (KL without an adapter).
        checkpointing: Whether activations are made anew in the backward pass.
        sharding: `none`, `zero2` (gradients and optimizer shared out), `zero3` (weights too).
        devices: How many share.
    """
    if sharding not in SHARDINGS:
        raise ValueError(f"sharding is {sharding!r}; choose one of {', '.join(SHARDINGS)}.")
    trained = size.parameters if trainable is None else trainable
    parts = devices if sharding != "none" else 1
    weight_parts = devices if sharding == "zero3" else 1
    weights = size.parameters * weight_width * (2 if reference else 1) / weight_parts
    if trainable is not None:
        weights += trained * weight_width
    if compute_width < weight_width:  # autocast keeps a narrow copy during a step
        weights += size.body * compute_width / weight_parts
    activations = activation_bytes(
        size, longest, rows, compute_width, checkpointing, longest.trained
    )
    activations += 3 * 4 * min(rows * longest.trained, 4096) * size.vocabulary  # logits, a chunk
    whole = size.parameters * compute_width if sharding == "zero3" else 0.0  # gathered to sample
    per_token = 2 * size.layers * size.kv_heads * size.head_size * compute_width
    cache = rollout_rows * (longest.packed * per_token + 8 * size.vocabulary) + whole
    return Memory(
        weights,
        trained * weight_width / parts,
        trained * 2 * weight_width / parts,
        activations,
        cache,
    )


def checkpoint_bytes(size: ModelSize, weight_width: int, trainable: int | None) -> float:
    """Disk of one checkpoint: weights (or the adapter) and Adam's moments."""
    return 3 * weight_width * (size.parameters if trainable is None else trainable)


def seconds(
    size: ModelSize,
    shape: TreeShape,
    hardware: Hardware,
    *,
    rows: int,
    updates: float,
    rollout_rows: int,
    compute_width: int,
    checkpointing: bool,
) -> tuple[float, float]:
    """Seconds of sampling and of updates for one generation.

    A decoding step reads all weights and the caches once, or takes its FLOPs, whichever is longer.

    Args:
        rows: Trees of a generation on one device.
        updates: Times that each tree is trained on.
        rollout_rows: Trees sampled at a time on one device.
    """
    speed = hardware.flops * hardware.utilisation
    batches = -(-rows // rollout_rows)
    steps = shape.thinking + shape.summary
    per_token = 2 * size.layers * size.kv_heads * size.head_size * compute_width
    read = size.parameters * compute_width
    read += rollout_rows * (shape.prompt + shape.thinking / 2) * per_token
    sampling = max(
        batches * steps * read / hardware.bandwidth, rows * rollout_flops(size, shape) / speed
    )
    return sampling, updates * rows * update_flops(size, shape, checkpointing) / speed
