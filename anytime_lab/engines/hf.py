"""Trees of a transformers model: one KV cache for a thinking and all summaries that branch off."""

import contextlib
import copy
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from anytime_lab.engines.attention import BACKEND, RUN, added_mask, branch_plan, branching
from anytime_lab.engines.base import (
    AHEAD,
    Continuation,
    Engine,
    Prefix,
    Sampling,
    Thinkings,
    derived_seed,
    sample_tokens,
    summary_leaf,
)
from anytime_lab.prompts import ThinkingTokens
from anytime_lab.tree import PADDING, TRUNK, Leaf, Tree, tree_mask

logger = logging.getLogger(__name__)


class RoomyLayer(DynamicLayer):
    """A layer of a cache with room for more: what it holds is copied now and then, not at each."""

    ROOM = 256  # tokens

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.rooms = [self.keys, self.values]
        end = (held := self.get_seq_length()) + key_states.shape[2]
        pairs = (self.keys, key_states), (self.values, value_states)
        for n, (old, new) in enumerate(pairs):
            # Rows that were picked lie elsewhere.
            if end > self.rooms[n].shape[-2:][0] or self.rooms[n].data_ptr() != old.data_ptr():
                self.rooms[n] = torch.cat([old, pad(new, (0, 0, 0, self.ROOM))], dim=-2)
            self.rooms[n][:, :, held:end] = new
        self.keys, self.values = (room[:, :, :end] for room in self.rooms)
        return self.keys, self.values


class Trunks(Thinkings):
    """R thinkings that grow by a token at a time on one cache.

    Every sampled token is fed at once, so that the cache holds all of a thinking and a summary can
    branch off anywhere.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokens: ThinkingTokens,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        generator: torch.Generator | None = None,
    ):
        super().__init__(prompts, sampling)
        self.model, self.tokens, self.generator = model, tokens, generator
        self.cache = Cache(layer_class_to_replicate=RoomyLayer)
        # A group shares its prompt: compute it once, then repeat its cache.
        row_of = {prompt: row for row, prompt in enumerate(dict.fromkeys(self.prompts))}
        ids, mask = _left_padded(model, tokens, [*row_of])
        logits = self.forward(ids, mask, (mask.cumsum(1) - 1).clamp(min=0))
        rows = torch.tensor([row_of[p] for p in self.prompts], device=ids.device)
        self.cache.batch_select_indices(rows)
        self.mask, self.logits = mask[rows], logits[rows, -1]  # 1 on the prompts' tokens

    def forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, keep: int = 1, trunk: int = 0
    ) -> Tensor:
        """Feed columns (R, N) to the cache; the logits of the last `keep` of them.

        The mask is of the columns that are seen (R, T), or says who sees whom (R, N, T). Many
        columns that branch off the first `trunk` of the cache attend in runs.
        """
        plan = {}
        if trunk and mask.shape[1] > RUN:
            plan["tree"] = branch_plan(mask, trunk, self.model.dtype)
            mask = plan["tree"].mask
        elif mask.ndim == 3:
            mask = added_mask(mask, self.model.dtype)
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
            **plan,
        )
        return out.logits[:, -keep:]

    @property
    def length(self) -> int:
        """Tokens sampled for the rows that still go on."""
        return self.cache.get_seq_length() - self.mask.shape[1]

    @torch.no_grad()
    def step(self) -> None:
        """Sample one token for every open row and feed it; padding for rows that have ended."""
        sampled, logprobs = sample_tokens(self.logits, self.sampling, self.generator)
        is_open = torch.tensor([not end for end in self.ends], device=sampled.device)
        sampled = sampled.masked_fill(~is_open, self.tokens.pad_id)
        drawn = zip(sampled.tolist(), logprobs.tolist(), strict=True)
        for row, (token, value) in enumerate(drawn):
            if not self.ends[row]:
                self.thinkings[row].append(token)
                self.logprobs[row].append(value)
                self.ends[row] = self.tokens.end(self.thinkings[row])
        positions = self.mask.sum(1, keepdim=True) + self.length
        attended = pad(self.mask, (0, self.length + 1), value=1)
        self.logits = self.forward(sampled[:, None], attended, positions)[:, -1]

    def select(self, rows: Sequence[int]) -> "Trunks":
        """The thinkings of some rows, with a cache of their own."""
        chosen = copy.copy(self)
        index = torch.tensor(rows, device=self.mask.device)
        for name in ("prompts", "thinkings", "logprobs", "ends"):
            setattr(chosen, name, [getattr(self, name)[row] for row in rows])
        chosen.mask, chosen.logits = self.mask[index], self.logits[index]
        chosen.cache = Cache(layer_class_to_replicate=RoomyLayer)
        for n, held in enumerate(self.cache.layers):
            chosen.cache.update(held.keys[index], held.values[index], n)
        return chosen


def sample_leaves(trunks: Trunks, cuts: Sequence[Sequence[int]]) -> list[list[Leaf]]:
    """Sample summaries that branch off thinkings at given cuts, all leaves of a row side by side.

    One forward pass reads the forced text of each different cut, then one for each summary token.
    Leaves of a cut are a trie: as long as they have drawn the same tokens they are one column. What
    they draw is the same, and costs less. The cache is as before when this returns.

    Args:
        trunks: R thinkings.
        cuts: For each row the tokens that its leaves stand on, one or more; rows may differ in
            number.

    Returns:
        R lists of leaves, as many as cuts.
    """
    tokens, sampling, device = trunks.tokens, trunks.sampling, trunks.mask.device
    roots = [list(dict.fromkeys(own)) for own in cuts]
    most = max(map(len, roots))
    forced = [
        {cut: tokens.forced(end or "length", cut, tokens.kept(thinking)) for cut in own}
        for own, thinking, end in zip(roots, trunks.thinkings, trunks.ends, strict=True)
    ]
    node = [torch.tensor([*map(own.index, row)]) for own, row in zip(roots, cuts, strict=True)]
    node = pad_sequence(node, batch_first=True, padding_value=-1).to(device)
    is_open, node = node >= 0, node.clamp(min=0)  # what fills the rows up is not read
    roots = [[*own, *own[-1:] * (most - len(own))] for own in roots]
    cut = torch.tensor(roots, device=device)  # (R, D)
    inserted = [texts[cut] for texts, own in zip(forced, roots, strict=True) for cut in own]
    ids, read = (
        one.view(len(cuts), most, -1).transpose(1, 2)  # (R, F, D)
        for one in _left_padded(trunks.model, tokens, inserted)
    )
    # Who sees whom: the trunk up to the cut, then what is forced behind it.
    trunk = torch.arange(trunks.length, device=device).expand(len(cuts), -1)
    number = torch.arange(most, device=device).where(read.bool(), PADDING).flatten(1)
    leaf = torch.cat([torch.full_like(trunk, TRUNK), number], dim=1)
    branch = torch.cat([trunk, cut.repeat(1, read.shape[1])], dim=1)
    sees = tree_mask(leaf, branch, trunks.mask, last=number.shape[1])[:, 0]  # (R, F D, T + F D)
    start = trunks.mask.sum(1, keepdim=True) + cut
    positions = start[:, None] + (read.cumsum(1) - 1).clamp(min=0)
    held = trunks.cache.get_seq_length()
    row = torch.arange(len(cuts), device=device)[:, None]
    steps: list[tuple[Tensor, Tensor]] = []
    with contextlib.ExitStack() as after:
        after.callback(lambda: trunks.cache.crop(held - trunks.cache.get_seq_length()))
        known = held if after.enter_context(branching(inner_model(trunks.model))) else 0
        logits = trunks.forward(ids.flatten(1), sees, positions.flatten(1), most, known)
        place = (start + read.sum(1)).gather(1, node)
        sees = sees[:, -most:][row, node]
        while True:
            logits = logits[row, node]  # (R, leaves, V)
            drawn, values = sample_tokens(logits, sampling, trunks.generator)
            steps.append((drawn, values))
            is_open = is_open & ~torch.isin(drawn, torch.tensor([*tokens.eos_ids], device=device))
            if len(steps) == sampling.max_summary_tokens or not is_open.any():
                break
            node, first = _branches(node, drawn, is_open)
            same = torch.eye(first.shape[1], dtype=torch.bool, device=device)
            sees = torch.cat([sees, same[node]], dim=2)
            logits = trunks.forward(
                drawn.gather(1, first),
                sees[row, first],
                place.gather(1, first) + len(steps) - 1,
                first.shape[1],
                known,
            )
    drawn, values = (torch.stack(one, dim=-1).tolist() for one in zip(*steps, strict=True))
    return [
        [
            summary_leaf(tokens, cut, texts[cut], Continuation(tuple(ids), tuple(told)))
            for cut, ids, told in zip(own, *made, strict=False)  # what fills a row up is left
        ]
        for own, texts, *made in zip(cuts, forced, drawn, values, strict=True)
    ]


def _branches(node: Tensor, drawn: Tensor, is_open: Tensor) -> tuple[Tensor, Tensor]:
    """The nodes of a trie that its leaves reach by a token each; M at most in a row.

    Args:
        node: (R, N) the node that each leaf was at.
        drawn: (R, N) its next token.
        is_open: (R, N) whether it goes on; one that does not goes to a node of the others.

    Returns:
        The new node of each leaf (R, N), and a leaf that goes on to each node (R, M).
    """
    key = node * (drawn.max() + 1) + drawn
    lowest = key.masked_fill(~is_open, torch.iinfo(key.dtype).max).amin(1, keepdim=True)
    # Of a node's leaves those that go on come first.
    key, order = (2 * key).where(is_open, 2 * lowest.clamp(max=int(key.max())) + 1).sort(1)
    number = ((key // 2).diff(dim=1, prepend=key[:, :1] // 2) != 0).cumsum(1)
    every = torch.arange(int(number.max()) + 1, device=node.device).expand(len(node), -1)
    first = torch.searchsorted(number, every.contiguous()).clamp(max=node.shape[1] - 1)
    return torch.empty_like(node).scatter(1, order, number), order.gather(1, first)


# Attention implementations that take a mask of who sees whom.
MASKED_ATTENTION = ("sdpa", "eager", BACKEND)


def why_not_trees(model: PreTrainedModel) -> str:
    """Why a model cannot attend over trees; empty where it can."""
    config, inner = model.config.get_text_config(), inner_model(model)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        return f"its layers are {', '.join(sorted(kinds))}, not full attention only"
    if getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None):
        return "its attention has a sliding window"
    if model.config._attn_implementation not in MASKED_ATTENTION:
        return f"attention {model.config._attn_implementation!r} takes no mask of its own"
    if not getattr(inner, "_supports_attention_backend", False):
        return f"{type(inner).__name__} does not use transformers' attention interface"
    return ""


def why_not_branching(model: PreTrainedModel) -> str:
    """Why leaves cannot be decoded on the cache of their trunk; empty where they can."""
    if reason := why_not_trees(model):
        return reason
    known = signature(inner_model(model).forward).parameters
    takes = "position_ids" in known and "logits_to_keep" in known
    return "" if takes else "its forward takes no position_ids or logits_to_keep"


def inner_model(model: PreTrainedModel) -> PreTrainedModel:
    """A model without the wrapper of its adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def turn_ends(*configs: Any) -> frozenset[int]:
    """Tokens that a model's settings call the end of a turn; there may be several.

    Args:
        *configs: Of the model and of its generation.
    """
    told = [getattr(config, "eos_token_id", None) for config in configs]
    ends = [one if isinstance(one, list | tuple) else [one] for one in told]
    return frozenset(id for one in ends for id in one if id is not None)


class HFEngine(Engine):
    """Samples trees with a transformers model, wherever it lies.

    A thinking is sampled once; its leaves are decoded side by side on its cache. Models that cannot
    do this (recurrent layers, sliding windows, attention without a mask) take a plain `generate`
    for each prefix instead, and the log says so.

    Args:
        model: A causal language model. It is put into evaluation mode while sampling.
        tokens: The format in the ids of its tokenizer; the model's own ends of a turn join them.
        batch_size: Thinkings at a time; all of a call if None.
        branches: Whether leaves may be decoded on the cache; False is the plain way, to compare.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokens: ThinkingTokens,
        batch_size: int | None = None,
        branches: bool = True,
    ):
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more, or None for all.")
        self.model, self.batch_size = model, batch_size
        config = model.config.get_text_config()
        self.context_length = getattr(config, "max_position_embeddings", None)
        own = turn_ends(model.generation_config, config)
        self.tokens = replace(tokens, eos_ids=(tokens.eos_ids | own) - {tokens.close_id})
        reason = why_not_branching(model) if branches else "as asked for"
        self._branches = not reason
        self._batched: bool | None = None  # whether `generate` takes rows together, once tried
        self._lock = threading.Lock()  # one token at a time: the model's mode is switched around it
        if reason:
            logger.warning("summaries are sampled by plain generate: %s.", reason)

    def _sample(self, made: Thinkings, budgets: tuple[int, ...], *how: Any) -> list[Tree]:
        generator, size = self._generator(made.seed), self.batch_size or len(made.prompts)
        trees: list[Tree] = []
        for start in range(0, len(made.prompts), size):
            batch = made.prompts[start : start + size]
            if self._branches:
                with sampling_mode(self.model):
                    trunks = Trunks(self.model, self.tokens, batch, made.sampling, generator)
                    trees += self._grow(trunks, budgets, *how)
            else:
                own = Thinkings(batch, made.sampling, derived_seed(made.seed, start, "batch"))
                trees += super()._sample(own, budgets, *how)
        return trees

    def _grow(self, trunks: Trunks, budgets: tuple[int, ...], *how: Any) -> list[Tree]:
        """Think to the end, then branch off; rows that ended leave once they are a quarter."""
        number = list(range(len(trunks.prompts)))  # of each row in the batch
        trees: dict[int, Tree] = {}
        while trunks.length < budgets[-1] and not all(trunks.ends):
            trunks.step()
            done = [row for row, end in enumerate(trunks.ends) if end]
            if len(trunks.ends) <= 4 * len(done) < 4 * len(trunks.ends):
                ended = self._trees(trunks.select(done), budgets, *how)
                trees |= zip([number[row] for row in done], ended, strict=True)
                rest = [row for row, end in enumerate(trunks.ends) if not end]
                trunks, number = trunks.select(rest), [number[row] for row in rest]
        trees |= zip(number, self._trees(trunks, budgets, *how), strict=True)
        return [trees[row] for row in range(len(trees))]

    def _leaves(
        self, made: Thinkings, places: list[list[int]], count: int
    ) -> list[list[list[Leaf]]]:
        if not isinstance(made, Trunks):
            return super()._leaves(made, places, count)
        if made.seed is not None:  # of these alone: the thinking's random state stays its own
            made.generator = self._generator(made.seed)
        rows = sample_leaves(made, [[cut for cut in own for _ in range(count)] for own in places])
        return [[row[at : at + count] for at in range(0, len(row), count)] for row in rows]

    def complete(
        self, prefixes: list[Prefix], limit: int, thinks: bool, sampling: Sampling
    ) -> list[Continuation]:
        """See `Engine.complete`; by plain generate, and the first seed decides for all."""
        rows = [prefix.ids for prefix in prefixes for _ in range(prefix.count)]
        model, tokens = self.model, self.tokens
        with sampling_mode(model), _plainly(model, prefixes[0].seed):
            if self._batched is None:
                self._batched = _generates_in_batches(model, tokens, max(rows, key=len))
            how = limit, sampling, thinks, self._batched
            parts = [rows] if self._batched else [[row] for row in rows]
            return [one for part in parts for one in generate_rows(model, tokens, part, *how)]

    def think(self, prompt: Sequence[int], sampling: Sampling, seed: int | None = None) -> Any:
        """See `Engine.think`; on a cache, where the model can branch off it."""
        if not self._branches:
            return super().think(prompt, sampling, seed)
        with self._lock, sampling_mode(self.model):
            return Trunks(self.model, self.tokens, [prompt], sampling, self._generator(seed))

    def step(self, thinking: Any, most: int = AHEAD) -> tuple[int, str]:
        """See `Engine.step`."""
        with self._lock, sampling_mode(self.model):
            if not isinstance(thinking, Trunks):
                return super().step(thinking, most)
            thinking.step()
            return thinking.thinkings[0][-1], thinking.ends[0]

    def answers(self, thinking: Any, count: int, seed: int | None = None) -> list[Leaf]:
        """See `Engine.answers`."""
        with self._lock, sampling_mode(self.model):
            return super().answers(thinking, count, seed)

    def _generator(self, seed: int | None) -> torch.Generator | None:
        return None if seed is None else torch.Generator(self.model.device).manual_seed(seed)


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


# --- plain generate ------------------------------------------------------------------------------


@contextlib.contextmanager
def _plainly(model: PreTrainedModel, seed: int | None) -> Iterator[None]:
    """`generate` without a checkpoint's penalties and filters; with a seed, its state is its own.

    It knows the global random state only, which is put back.
    """
    kind = model.device.type
    devices = [] if kind == "cpu" else [model.device]
    kept = [(holder, holder.generation_config) for holder in (inner_model(model), model)]
    with contextlib.ExitStack() as stack:
        for holder, config in kept:
            stack.callback(setattr, holder, "generation_config", config)
            holder.generation_config = GenerationConfig()
        stack.enter_context(torch.random.fork_rng(devices, seed is not None, device_type=kind))
        if seed is not None:
            torch.manual_seed(seed)
        yield


def generate_rows(
    model: PreTrainedModel,
    tokens: ThinkingTokens,
    prefixes: Sequence[Sequence[int]],
    limit: int,
    sampling: Sampling,
    thinks: bool,
    use_cache: bool = True,
) -> list[Continuation]:
    """Continue each prefix by `generate`, up to where `Engine.complete` says."""
    ids, mask = _left_padded(model, tokens, prefixes)
    width = ids.shape[1]
    greedy = sampling.temperature == 0
    drawn = {} if greedy else sampling.filters
    if thinks and tokens.stop_text:
        drawn["stopping_criteria"] = [
            lambda rows, _scores: torch.tensor(
                [bool(tokens.end(row)) for row in rows[:, width:].tolist()], device=rows.device
            )
        ]
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=limit,
        do_sample=not greedy,
        eos_token_id=sorted(tokens.stop_ids if thinks else tokens.eos_ids),
        pad_token_id=tokens.pad_id,
        use_cache=use_cache,
        return_dict_in_generate=True,
        output_logits=True,
        **drawn,
    )
    new = out.sequences[:, width:]
    logits = torch.stack(out.logits, dim=1).float()
    logprobs = (logits if greedy else logits / sampling.temperature).log_softmax(-1)
    values = logprobs.gather(-1, new[..., None])[..., 0]
    made = []
    for row, value in zip(new.tolist(), values.tolist(), strict=True):
        size = tokens.first_end(row, thinks)
        made.append(Continuation(tuple(row[:size]), tuple(value[:size])))
    return made


def _left_padded(
    model: PreTrainedModel, tokens: ThinkingTokens, prefixes: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Ids and mask, (R, longest prefix)."""
    width, device = max(map(len, prefixes)), model.device
    ids = [[tokens.pad_id] * (width - len(p)) + [*p] for p in prefixes]
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in prefixes]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _generates_in_batches(
    model: PreTrainedModel, tokens: ThinkingTokens, prompt: Sequence[int]
) -> bool:
    """Whether `generate` on padded rows and a cache says what the model says of a row by itself.

    Tried on the first half of a prompt beside the whole, for a few tokens. RWKV takes padding
    for text and mixes the states of a batch; DeepSeek-V4 compresses blocks of columns.
    """
    rows, greedy = [prompt[: max(1, len(prompt) // 2)], prompt], Sampling(temperature=0)
    together, alone = (
        generate_rows(model, tokens, rows[:count], 4, greedy, False, use_cache=count > 1)[0]
        for count in (2, 1)
    )
    apart = [abs(a - b) for a, b in zip(together.logprobs, alone.logprobs, strict=False)]
    near = max(apart) < torch.finfo(model.dtype).eps ** 0.5  # in nats
    exact = near and together.tokens == alone.tokens
    if not exact:
        logger.warning(
            "%s generates something else in a batch, or on its cache, than for a row by itself: "
            "rows are sampled one by one without a cache, which is slow.",
            type(model).__name__,
        )
    return exact
