"""Log-probs of packed rows by the backend that a model supports, in TRL's fused head."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor
from transformers import PreTrainedModel
from trl.trainer.utils import pad, split_tensor_dict

from anytime_lab.engines import attention
from anytime_lab.engines.hf import inner_model, sampling_mode, why_not_trees
from anytime_lab.prompts import ThinkingTokens
from anytime_lab.tree import (
    PADDING,
    TRUNK,
    Leaf,
    PackedTree,
    Tree,
    pack,
    tree_mask,
    tree_positions,
    unroll,
)

ENDS = ("closed", "eos", "length")  # how a thinking ended; the order is the code in tensors


class TreeRows(NamedTuple):
    """Layout of B packed rows after their prompts, padded to C columns.

    Attributes:
        leaf: (B, C) leaf number; -1 on the trunk, -2 on padding.
        branch: (B, C) tokens of the trunk that a token stands on: its cut, or its own place.
        trained: (B, C) 1 on sampled tokens, 0 on forced ones and padding.
    """

    leaf: Tensor
    branch: Tensor
    trained: Tensor


def stack_rows(
    packed: Sequence[PackedTree], device: torch.device, multiple_of: int | None = None
) -> TreeRows:
    """Pad the layouts of packed trees to a common length.

    Args:
        packed: B trees.
        device: where the tensors are made.
        multiple_of: C becomes a multiple of this, as TRL pads completions.
    """

    def padded(name: str, fill: int) -> Tensor:
        values = [torch.tensor(getattr(tree, name), device=device) for tree in packed]
        return pad(values, padding_value=fill, pad_to_multiple_of=multiple_of)

    return TreeRows(padded("leaf", PADDING), padded("branch", 0), padded("trained", 0))


class TreeNumbers(NamedTuple):
    """What is counted on N trees.

    Attributes:
        ends: (N,) index into ENDS.
        cuts: (N, J) tokens of thinking that the summaries at a budget stand on; all, at the last.
        formatted: (N, J, S) 1 where exactly one think-end marker stands in thinking and summary, or
            the format has none.
        finished: (N, J, S) 1 where the summary ended by itself.
        summary_tokens: (N, J, S) sampled tokens.
    """

    ends: Tensor
    cuts: Tensor
    formatted: Tensor
    finished: Tensor
    summary_tokens: Tensor


def count_trees(
    trees: Sequence[Tree], tokens: ThinkingTokens, num_summaries: int, device: Any
) -> TreeNumbers:
    """Count on each tree what the scores and the metrics need."""

    def well_formed(tree: Tree, leaf: Leaf) -> bool:
        # The marker can stand in a thinking as its last token only: sampling stops there.
        closes = tree.end == "closed" and leaf.cut == len(tree.thinking)
        found = closes + tokens.markers(leaf.forced) + tokens.markers(leaf.summary)
        return not tokens.fmt.think_close or found == 1

    def per_leaf(count: Callable[[Tree, Leaf], int]) -> Tensor:
        counted = [[count(tree, leaf) for leaf in tree.leaves] for tree in trees]
        return torch.tensor(counted, device=device).long().unflatten(1, (-1, num_summaries))

    return TreeNumbers(
        ends=torch.tensor([ENDS.index(tree.end) for tree in trees], device=device),
        cuts=per_leaf(lambda tree, leaf: leaf.cut)[..., 0],
        formatted=per_leaf(well_formed),
        finished=per_leaf(lambda tree, leaf: leaf.finished),
        summary_tokens=per_leaf(lambda tree, leaf: len(leaf.summary)),
    )


class ScoredRows(NamedTuple):
    """Per-token numbers of B rows after their prompts, (B, C); 0 where nothing is trained.

    Attributes:
        log_probs: In nats, at the sampling temperature.
        entropy: In nats; 0 where the model's head does not compute it.
    """

    log_probs: Tensor
    entropy: Tensor


def choose_backend(
    model: PreTrainedModel, name: str = "auto", temperature: float = 1.0
) -> tuple[str, str]:
    """The backend that a model supports, with the model prepared for it, and why, for the log.

    `segmented` replaces SDPA attention by tree attention, which is SDPA where there is no tree. A
    backend is tried on two short trees, and passed over where it differs from unrolled rows.

    Args:
        model: A causal language model or a PeftModel, with TRL's fused head.
        name: `auto`, or the backend that is wanted.
        temperature: What the head divides logits by.

    Raises:
        ValueError: the model does not support what is wanted; or the head, which knows the common
            ways from hidden states to logits, leaves out a part of this model's.
    """
    inner, chosen = inner_model(model), model.config._attn_implementation
    unable = why_not_trees(model)
    told = unable or ("the model supports it" if name == "auto" else "asked for")
    ways = ["segmented", "dense", "unrolled"] if name == "auto" else [name]
    if name == "auto" and chosen == "eager":
        ways, told = ways[1:], unable or "attention 'eager' was chosen for the model"
    ways = [way for way in ways if way == "unrolled" or not unable]
    # What is sharded, or yet to be loaded, cannot be tried.
    here = not any(p.is_meta or not p.numel() or hasattr(p, "ds_id") for p in model.parameters())
    tried = "two short trees are scored as by its own logits" if here else "not tried"
    for way in ways:
        if way == "segmented":
            inner.set_attn_implementation(attention.BACKEND)
        if not (wrong := _wrong_with(model, way, temperature) if here else ""):
            return way, f"{told}; {tried}"
        if way == "segmented":
            inner.set_attn_implementation("sdpa" if chosen == attention.BACKEND else chosen)
        told = wrong
    if "unrolled" in ways:
        raise ValueError(
            f"{told}: TRL's fused head leaves out what this model does after its last layer. Take "
            "a model of another architecture."
        )
    raise ValueError(
        f'tree_backend={name!r} cannot run this model: {told}. Set tree_backend="auto".'
    )


def _wrong_with(model: PreTrainedModel, backend: str, temperature: float) -> str:
    """How a backend differs from the model's own logits on unrolled rows; empty if it does not."""
    device, name = model.device, type(inner_model(model)).__name__
    leaves = {cut: Leaf(cut, (0,), (0, 0), (0.0, 0.0), True) for cut in (2, 3, 4)}
    stands = {n: (leaves[2], leaves[n], leaves[n]) for n in (4, 3)}
    trees = [Tree((), (0,) * n, (0.0,) * n, "length", told) for n, told in stands.items()]
    rows = stack_rows([pack(tree) for tree in trees], device)
    prompt_mask = torch.tensor([[1, 1, 1], [0, 1, 1]], device=device)
    ids = torch.arange(32, device=device).view(2, 16) % model.config.get_text_config().vocab_size
    ids[:, 3:][(rows.leaf >= 0) & (rows.trained == 0)] = 0  # forced text that leaves of a cut share
    taken = unroll(ids[:, :3], prompt_mask, ids[:, 3:], rows.leaf, rows.branch)
    with sampling_mode(model):
        logits = model(input_ids=taken.ids, attention_mask=taken.mask).logits.float() / temperature
        log_probs = logits.log_softmax(-1)[:, :-1].gather(2, taken.ids[:, 1:, None])[..., 0]
        source = taken.source[:, 1:]
        own = log_probs.new_zeros(rows.leaf.numel())
        own[source[source >= 0]] = log_probs[source >= 0]
        try:
            mask = torch.cat([prompt_mask, (rows.leaf != PADDING).long()], dim=1)
            told = score_rows(model, backend, ids, mask, rows).log_probs.flatten()
        except attention.PlanLostError:
            return f"{name} hands its attention no more than a mask"
    apart = ((told - own).abs() / own.abs().clamp(min=1))[rows.trained.flatten().bool()].mean()
    rounding = max(torch.finfo(model.dtype).eps, 2**-11 if device.type == "cuda" else 0)  # TF32
    if apart < 4 * rounding**0.5:
        return ""
    return f"log-probs of {name} by {backend} trees are off by {apart:.2g} of what they are"


def _make_pass(
    model: PreTrainedModel, backend: str, input_ids: Tensor, prompt_mask: Tensor, rows: TreeRows
) -> tuple[Tensor, dict[str, Any], Tensor, Tensor]:
    """What a model is given to score the N trained tokens of packed rows.

    Returns:
        Token ids (R, L), what tells who sees whom, the tokens' places in the rows' (B · C), and the
        hidden states that predict them in the (R · L); both (N,).
    """
    batch, columns = rows.leaf.shape
    prompt_ids, completion_ids = input_ids[:, :-columns], input_ids[:, -columns:]
    every = torch.arange(batch * columns, device=input_ids.device).view(batch, columns)
    if backend == "segmented":
        lean = attention.lean_rows(completion_ids, *rows)
        order, real = attention.first_columns(lean.fed)

        def taken(values: Tensor, fill: int = 0) -> Tensor:
            return values.gather(1, order).masked_fill(~real, fill)

        layout = taken(lean.leaf, PADDING), taken(rows.branch), prompt_mask, model.dtype
        plan = attention.tree_plan(*layout, taken(lean.stem, PADDING), lean.bounds)
        prompt, width = prompt_ids.shape[1], input_ids.shape[1] - columns + order.shape[1]
        positions = tree_positions(rows.leaf, rows.branch, prompt_mask)
        # Models hand such a mask on as it is: the plan says who sees whom.
        mask = torch.ones(batch, 1, 1, 1, dtype=torch.bool, device=input_ids.device)
        inputs = {
            "position_ids": torch.cat([positions[:, :prompt], taken(positions[:, prompt:])], 1),
            "tree": plan,
            "attention_mask": mask,
        }
        row, column = rows.trained.nonzero(as_tuple=True)
        before = (lean.fed.cumsum(1) - 1)[row, lean.stand[row, column - 1]]
        where = row * width + prompt + torch.where(column > 0, before, -1)
        ids = torch.cat([prompt_ids, taken(completion_ids)], dim=1)
        return ids, inputs, every[row, column], where
    if backend == "unrolled":
        taken = unroll(prompt_ids, prompt_mask, completion_ids, rows.leaf, rows.branch)
        ids, source, inputs = taken.ids, taken.source, {"attention_mask": taken.mask}
    else:
        source = torch.cat([torch.full_like(prompt_ids, -1), every], dim=1)
        mask = tree_mask(rows.leaf, rows.branch, prompt_mask)
        if model.config._attn_implementation == "eager":  # adds its mask to the scores
            mask = attention.added_mask(mask[:, 0], model.dtype)
        inputs = {
            "position_ids": tree_positions(rows.leaf, rows.branch, prompt_mask),
            "attention_mask": mask,
        }
        ids = input_ids
    trained = (source >= 0) & rows.trained.flatten()[source.clamp(min=0)].bool()
    return ids, inputs, source[trained], predicting(trained)


def predicting(scored: Tensor) -> Tensor:
    """Hidden states in the flat (B · L) that predict the tokens at `scored` (B, L): one before."""
    return scored.flatten().nonzero()[:, 0] - 1


def score_tokens(
    model: Any, input_ids: Tensor, labels: Tensor, where: Tensor, **inputs: Any
) -> tuple[Tensor, Tensor]:
    """TRL's fused head on some hidden states alone: it would score every position.

    Args:
        model: With that head; wrapped for training or not.
        input_ids: (B, L).
        labels: (N,) tokens to score.
        where: (N,) the hidden states that predict them, in the flat (B · L).

    Returns:
        (N,) log-probs and entropies; 0 where the head has no entropy, as a reference model's.
    """

    def take(module, arguments, output):  # the head sees these alone, as (1, N, D)
        hidden = output.last_hidden_state.flatten(0, 1)
        output.last_hidden_state = hidden.index_select(0, where)[None]
        return output

    inner = inner_model(extract_model_from_parallel(model))
    with inner.base_model.register_forward_hook(take):
        out = model(input_ids=input_ids, shift_labels=labels[None], fused_lm_head=True, **inputs)
    entropy = torch.zeros_like(out.log_probs) if out.entropy is None else out.entropy
    return out.log_probs[0], entropy[0]


def score_rows(
    model: Any,
    backend: str,
    input_ids: Tensor,
    attention_mask: Tensor,
    rows: TreeRows,
    kept: Tensor | None = None,
    spare: int = sys.maxsize,
    most: int = sys.maxsize,
) -> ScoredRows:
    """Log-probs and entropies of the trained tokens of packed rows, computed on what is kept.

    Padding is left out with what is not kept: a generation is padded to its longest tree before it
    is shuffled and split. So are rows of which nothing is kept.

    Args:
        model: With TRL's fused head; wrapped for training or not.
        backend: The one that `choose_backend` has prepared the model for.
        input_ids: (B, Q + C) prompts, padded on the left, and packed trees.
        attention_mask: (B, Q + C).
        rows: The layout of the last C columns.
        kept: (B, C) as `live_columns` gives it; None keeps all that is no padding.
        spare: Columns of padding above which rows are run in passes of their own.
        most: Rows of a pass.
    """
    kept = rows.leaf != PADDING if kept is None else kept.clone()
    kept[0, 0] |= ~kept.any()  # a token that trains nothing: the graph must reach the weights
    columns = kept.shape[1]
    widths = _widths(kept, attention_mask[:, :-columns])
    inner, found = extract_model_from_parallel(model), []
    for some in _alike(widths, spare, most):
        order, real = attention.first_columns(kept[some])
        prompt_mask = attention_mask[some, :-columns]
        first = int(prompt_mask.any(dim=0).int().argmax())

        def taken(values: Tensor, fill: int, some=some, order=order, real=real) -> Tensor:
            return values[some].gather(1, order).masked_fill(~real, fill)

        ids = torch.cat([input_ids[some, first:-columns], taken(input_ids[:, -columns:], 0)], 1)
        fills = PADDING, 0, 0
        layout = TreeRows(*(taken(*pair) for pair in zip(rows, fills, strict=True)))
        ids, inputs, places, where = _make_pass(inner, backend, ids, prompt_mask[:, first:], layout)
        labels = taken(input_ids[:, -columns:], 0).flatten()[places]
        if not len(labels):  # the graph must reach the weights: a label that scores 0
            places, where, labels = (labels.new_full((1,), n) for n in (0, 0, -100))
        values = score_tokens(model, ids, labels, where, **inputs)
        found.append(((some[:, None] * columns + order).flatten()[places], *values))
    places, *told = map(torch.cat, zip(*found, strict=True))
    none = told[0].new_zeros(kept.numel())
    return ScoredRows(*(none.index_put((places,), values).view_as(kept) for values in told))


def _widths(kept: Tensor, prompt_mask: Tensor) -> Tensor:
    """Columns (B,) that a row takes with its prompt; 0 where nothing of it is kept."""
    counts = kept.sum(1)
    return (counts + prompt_mask.sum(1)) * (counts > 0)


def _alike(widths: Tensor, spare: int, most: int) -> list[Tensor]:
    """Rows (B,) in parts of at most `most`; none pads more than `spare` columns.

    Rows of width 0 are left out. A pass of its own costs something, too: on two cores about as much
    as some hundred columns.
    """
    order = widths.argsort(descending=True, stable=True)[: int((widths > 0).sum())]
    parts: list[list[int]] = []
    padding = widest = 0
    for row, width in zip(order.tolist(), widths[order].tolist(), strict=True):
        padding += widest - width
        if not parts or padding > spare or len(parts[-1]) == most:
            parts, padding, widest = [*parts, []], 0, width
        parts[-1].append(row)
    return [torch.tensor(part, device=widths.device) for part in parts]


# --- what has a gradient -------------------------------------------------------------------------


def why_all_tokens(args: Any) -> str:
    """Why a loss needs every token of a tree; empty where a token without advantage adds nothing.

    Args:
        args: A `BRPOConfig`.
    """
    if not args.skip_dead_tokens:
        return "skip_dead_tokens is False"
    if args.beta:
        return f"beta={args.beta:g} has a term on each"
    if args.entropy_coef or args.use_adaptive_entropy:
        return "the entropy bonus has a term on each"
    if args.top_entropy_quantile < 1:
        return "top_entropy_quantile ranks all of them"
    return ""


def live_columns(advantages: Tensor, rows: TreeRows) -> Tensor:
    """What the gradient of the tokens with an advantage needs: they, and what they stand on.

    A leaf is needed whole where one of its tokens has an advantage; the trunk up to its last token
    with one, and up to the last cut of such a leaf.

    Args:
        advantages: (B, C).
        rows: the layout.

    Returns:
        (B, C) bool; a row without any advantage has none.
    """
    leaf, branch = rows.leaf, rows.branch
    live = (advantages != 0) & rows.trained.bool()
    on_leaf = leaf >= 0
    number = torch.where(on_leaf, leaf, int(leaf.max()) + 1).long()
    alive = live.new_zeros(len(leaf), int(number.max()) + 1, dtype=torch.int8)
    alive.scatter_reduce_(1, number, live.to(torch.int8), "amax")
    kept = on_leaf & alive.gather(1, number).bool()
    trunk = leaf == TRUNK
    needed = torch.where(kept, branch, torch.where(trunk & live, branch + 1, 0)).amax(1)
    return kept | (trunk & (branch < needed[:, None]))


def by_length(batches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows in as many batches, those of like length together.

    Args:
        batches: Parts of a generation whose rows' order means nothing, with `tree_kept` (B, C).
    """
    widths = [_widths(batch["tree_kept"], batch["prompt_mask"]) for batch in batches]
    order = torch.cat(widths).argsort(stable=True)
    joined = {
        key: torch.cat([batch[key] for batch in batches])[order]
        if isinstance(value, Tensor) and value.ndim
        else value
        for key, value in batches[0].items()
    }
    return split_tensor_dict(joined, len(batches))
