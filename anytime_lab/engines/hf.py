"""Trees from a transformers model: thinkings on a KV cache, leaves in one row per thinking."""

import contextlib
import inspect
import logging
from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel

from anytime_lab.engines.base import Sampling
from anytime_lab.engines.branching import Trunks, sample_leaves
from anytime_lab.engines.regenerate import sample_trees_by_generate
from anytime_lab.priors import check_budgets
from anytime_lab.prompts import ThinkingTokens
from anytime_lab.tree import Leaf, Tree, cuts

logger = logging.getLogger(__name__)

# Attention implementations that take a mask of who sees whom.
MASKED_ATTENTION = ("sdpa", "eager", "anytime_tree")


def why_not_branching(model: PreTrainedModel) -> str:
    """Why leaves cannot be decoded on the cache of their trunk; empty where they can."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        return f"its layers are {', '.join(sorted(kinds))}, not full attention only"
    windowed = getattr(config, "use_sliding_window", True)
    if windowed and getattr(config, "sliding_window", None):
        return "its attention has a sliding window"
    if model.config._attn_implementation not in MASKED_ATTENTION:
        return f"attention {model.config._attn_implementation!r} takes no mask of its own"
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    parameters = inspect.signature(inner.forward).parameters
    if "position_ids" not in parameters or "logits_to_keep" not in parameters:
        return "its forward takes no position_ids or logits_to_keep"
    if not getattr(inner, "_supports_attention_backend", False):
        return f"{type(inner).__name__} does not use transformers' attention interface"
    return ""


class HFEngine:
    """Samples trees with a transformers model, wherever it lies.

    A thinking is sampled once; its leaves are decoded side by side on its cache. Models that cannot
    do this (recurrent layers, sliding windows, attention without a mask) take a plain `generate`
    for each prefix instead, and the log says so.

    Args:
        model: A causal language model. It is put into evaluation mode while sampling.
        tokens: The format in the ids of its tokenizer.
        batch_size: Thinkings at a time; all of a call if None.
    """

    def __init__(
        self, model: PreTrainedModel, tokens: ThinkingTokens, batch_size: int | None = None
    ):
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more, or None for all.")
        self.model, self.tokens, self.batch_size = model, tokens, batch_size
        self._reason = why_not_branching(model)
        if self._reason:
            logger.warning("summaries are sampled by plain generate: %s.", self._reason)

    @property
    def context_length(self) -> int | None:
        """Positions of the model; None where it has no limit."""
        config = self.model.config.get_text_config()
        return getattr(config, "max_position_embeddings", None)

    def sample_trees(
        self,
        prompts: Sequence[Sequence[int]],
        budgets: Sequence[int],
        num_summaries: int,
        sampling: Sampling,
        seed: int | None = None,
        share_cuts: bool = False,
    ) -> list[Tree]:
        """See `Engine.sample_trees`."""
        budgets = check_budgets(budgets)
        if num_summaries < 1:
            raise ValueError(f"num_summaries is {num_summaries}; expected at least 1.")
        if any(not prompt for prompt in prompts):
            raise ValueError("a prompt is empty; expected at least the think-open marker.")
        generator = None
        if seed is not None:
            generator = torch.Generator(self.model.device).manual_seed(seed)
        size = self.batch_size or max(1, len(prompts))
        trees: list[Tree] = []
        with sampling_mode(self.model):
            for start in range(0, len(prompts), size):
                batch = prompts[start : start + size]
                if self._reason:
                    trees += sample_trees_by_generate(
                        self.model, self.tokens, batch, budgets, num_summaries, sampling,
                        generator, share_cuts,
                    )  # fmt: skip
                else:
                    trunks = Trunks(self.model, self.tokens, batch, sampling, generator)
                    trees += _grow(trunks, budgets, num_summaries, share_cuts)
        return trees

    def think(self, prompt: Sequence[int], sampling: Sampling, seed: int | None = None) -> Trunks:
        """Begin one thinking, to go on token by token with `step` and branch off by `answers`.

        Raises:
            ValueError: the model cannot branch off its cache.
        """
        if self._reason:
            raise ValueError(
                f"this model cannot answer in the middle of a thinking: {self._reason}."
            )
        generator = None
        if seed is not None:
            generator = torch.Generator(self.model.device).manual_seed(seed)
        with sampling_mode(self.model):
            return Trunks(self.model, self.tokens, [prompt], sampling, generator)

    def answers(self, trunks: Trunks, count: int) -> list[Leaf]:
        """Sample `count` summaries of one thinking as it stands; it can go on afterwards."""
        with sampling_mode(self.model):
            return sample_leaves(trunks, [[len(trunks.thinkings[0])] * count])[0]


@contextlib.contextmanager
def sampling_mode(model: PreTrainedModel) -> Iterator[None]:
    """No gradients, no dropout; the model's mode is restored."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _grow(
    trunks: Trunks, budgets: Sequence[int], num_summaries: int, share_cuts: bool
) -> list[Tree]:
    """Think to the end and branch off; rows that ended leave the batch once half of it has."""
    number = list(range(len(trunks.prompts)))  # of each row in the batch
    trees: dict[int, Tree] = {}

    def finish(part: Trunks, numbers: list[int]) -> None:
        wanted = [
            leaf_cuts(len(thinking), budgets, num_summaries, share_cuts)
            for thinking in part.thinkings
        ]
        leaves = sample_leaves(part, [unique for unique, _ in wanted])
        rows = [[made[i] for i in places] for made, (_, places) in zip(leaves, wanted, strict=True)]
        trees.update(zip(numbers, part.trees(rows), strict=True))

    while trunks.length < budgets[-1] and not all(trunks.ends):
        trunks.step()
        done = [row for row, end in enumerate(trunks.ends) if end]
        if 2 * len(done) >= len(trunks.ends) and len(done) < len(trunks.ends) > 8:
            finish(trunks.select(done), [number[row] for row in done])
            rest = [row for row, end in enumerate(trunks.ends) if not end]
            trunks, number = trunks.select(rest), [number[row] for row in rest]
    finish(trunks, number)
    return [trees[row] for row in range(len(trees))]


def leaf_cuts(
    length: int, budgets: Sequence[int], num_summaries: int, share_cuts: bool
) -> tuple[list[int], list[int]]:
    """Cuts to sample summaries at, and for each of the J·S leaves which of these it takes."""
    wanted = [cut for cut in cuts(length, budgets) for _ in range(num_summaries)]
    if not share_cuts:
        return wanted, list(range(len(wanted)))
    distinct = list(dict.fromkeys(wanted))
    first = {cut: place * num_summaries for place, cut in enumerate(distinct)}
    unique = [cut for cut in distinct for _ in range(num_summaries)]
    return unique, [first[cut] + n % num_summaries for n, cut in enumerate(wanted)]
