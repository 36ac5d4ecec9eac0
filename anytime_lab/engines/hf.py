"""Trees of a transformers model: one KV cache for a thinking and all summaries that branch off."""

import contextlib
import copy
import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from anytime_lab.engines.base import (
    Continuation,
    Engine,
    Prefix,
    Sampling,
    check_request,
    sample_tokens,
    summary_leaf,
)
from anytime_lab.prompts import ThinkingTokens
from anytime_lab.tree import Leaf, Tree, cuts

logger = logging.getLogger(__name__)


class Trunks:
    """R thinkings that grow by a token at a time on one cache.

    Every sampled token is fed at once, so that the cache holds all of a thinking and a summary can
    branch off anywhere.

    Attributes:
        prompts: R prompts, in token ids.
        thinkings: R lists of sampled tokens.
        logprobs: R lists of their log-probs.
        ends: R of `closed`, `eos`, or `` while the thinking goes on.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokens: ThinkingTokens,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        generator: torch.Generator | None = None,
    ):
        self.model, self.tokens = model, tokens
        self.sampling, self.generator = sampling, generator
        self.prompts = [tuple(prompt) for prompt in prompts]
        self.thinkings: list[list[int]] = [[] for _ in prompts]
        self.logprobs: list[list[float]] = [[] for _ in prompts]
        self.ends = [""] * len(self.prompts)
        self.cache = DynamicCache()
        self.attended, self.logits = self._prefill()
        self.width = self.attended.shape[1]  # of the prompts, padding included

    def _prefill(self) -> tuple[Tensor, Tensor]:
        # A group shares its prompt: compute it once, then repeat its cache.
        distinct = list(dict.fromkeys(self.prompts))
        ids, mask = _left_padded(self.model, self.tokens, distinct)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        row_of = {prompt: row for row, prompt in enumerate(distinct)}
        rows = torch.tensor([row_of[p] for p in self.prompts], device=ids.device)
        self.cache.batch_select_indices(rows)
        return mask[rows], out.logits[rows, -1]

    @property
    def length(self) -> int:
        """Tokens sampled for the rows that still go on."""
        return self.attended.shape[1] - self.width

    @torch.no_grad()
    def step(self) -> list[int]:
        """Sample one token for every open row and feed it.

        Returns:
            R tokens; padding for rows that have ended.
        """
        sampled, logprobs = sample_tokens(self.logits, self.sampling, self.generator)
        is_open = torch.tensor([not end for end in self.ends], device=sampled.device)
        sampled = sampled.masked_fill(~is_open, self.tokens.pad_id)
        drawn, values = sampled.tolist(), logprobs.tolist()
        for row, (token, value) in enumerate(zip(drawn, values, strict=True)):
            if self.ends[row]:
                continue
            self.thinkings[row].append(token)
            self.logprobs[row].append(value)
            self.ends[row] = self.tokens.end(self.thinkings[row])
        self._feed(sampled)
        return drawn

    def _feed(self, sampled: Tensor) -> None:
        positions = self.attended[:, : self.width].sum(1) + self.length
        self.attended = torch.cat([self.attended, torch.ones_like(self.attended[:, :1])], dim=1)
        out = self.model(
            input_ids=sampled[:, None],
            attention_mask=self.attended,
            position_ids=positions[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.logits = out.logits[:, -1]

    def select(self, rows: Sequence[int]) -> "Trunks":
        """The thinkings of some rows, with a cache of their own."""
        chosen = object.__new__(Trunks)
        chosen.__dict__.update(self.__dict__)
        index = torch.tensor(rows, device=self.attended.device)
        for name in ("prompts", "thinkings", "logprobs", "ends"):
            setattr(chosen, name, [getattr(self, name)[row] for row in rows])
        chosen.attended, chosen.logits = self.attended[index], self.logits[index]
        chosen.cache = DynamicCache()
        for layer, held in enumerate(self.cache.layers):
            chosen.cache.update(held.keys[index], held.values[index], layer)
        return chosen

    def trees(self, leaves: Sequence[Sequence[Leaf]]) -> list[Tree]:
        """The finished rows as trees with their leaves; what is still open ended by `length`."""
        rows = zip(self.prompts, self.thinkings, self.logprobs, self.ends, leaves, strict=True)
        return [
            Tree(prompt, tuple(thinking), tuple(logprobs), end or "length", tuple(row))
            for prompt, thinking, logprobs, end, row in rows
        ]


def sample_leaves(trunks: Trunks, cuts: Sequence[Sequence[int]]) -> list[list[Leaf]]:
    """Sample summaries that branch off thinkings at given cuts, all leaves of a row side by side.

    One forward pass reads the forced text of all leaves, then one for each summary token. The cache
    is as before when this returns.

    Args:
        trunks: R thinkings.
        cuts: For each row the tokens that its leaves stand on; rows may differ in number.

    Returns:
        R lists of leaves, as many as cuts.
    """
    if not any(cuts):
        return [[] for _ in cuts]
    kept = trunks.cache.get_seq_length()
    block = _LeafBlock(trunks, cuts)
    try:
        return block.sample()
    finally:
        trunks.cache.crop(kept - trunks.cache.get_seq_length())


class _LeafBlock:
    """R × N leaves on the cache of R thinkings, missing ones filled up and never read."""

    def __init__(self, trunks: Trunks, cuts: Sequence[Sequence[int]]):
        self.trunks, self.tokens = trunks, trunks.tokens
        self.cuts = [list(row) for row in cuts]
        self.count = max(map(len, self.cuts))
        forced = [
            [self.tokens.forced(end or "length", cut, self.tokens.kept(thinking)) for cut in row]
            for row, thinking, end in zip(self.cuts, trunks.thinkings, trunks.ends, strict=True)
        ]
        self.forced = forced
        self.longest = max(len(ids) for row in forced for ids in row)
        device = trunks.attended.device
        pad, missing = self.tokens.pad_id, self.count
        ids = [
            [[pad] * (self.longest - len(leaf)) + [*leaf] for leaf in row]
            + [[pad] * self.longest] * (missing - len(row))
            for row in forced
        ]
        lengths = [[len(leaf) for leaf in row] + [0] * (missing - len(row)) for row in forced]
        self.ids = torch.tensor(ids, device=device).transpose(1, 2)  # (R, F, N)
        self.lengths = torch.tensor(lengths, device=device)  # (R, N)
        filled = [row + [0] * (missing - len(row)) for row in self.cuts]
        self.cut = torch.tensor(filled, device=device)  # (R, N)

    def sample(self) -> list[list[Leaf]]:
        trunks, sampling = self.trunks, self.trunks.sampling
        rows, leaves = self.cut.shape
        forced_mask, step_mask = self._masks(sampling.max_summary_tokens)
        start = trunks.attended[:, : trunks.width].sum(1)[:, None] + self.cut  # (R, N)
        place = torch.arange(self.longest, device=start.device)[None, :, None]
        offset = (place - (self.longest - self.lengths)[:, None]).clamp(min=0)
        block = self.longest * leaves
        held = trunks.cache.get_seq_length()
        logits = self._forward(
            self.ids.reshape(rows, block),
            forced_mask,
            (start[:, None] + offset).reshape(rows, block),
            leaves,
        )
        is_open = torch.tensor(
            [[n < len(row) for n in range(leaves)] for row in self.cuts], device=start.device
        )
        ends = torch.tensor(sorted(self.tokens.eos_ids), device=start.device)
        tokens, logprobs = [], []
        for step in range(sampling.max_summary_tokens):
            drawn, values = sample_tokens(logits, sampling, trunks.generator)
            tokens.append(drawn)
            logprobs.append(values)
            is_open = is_open & ~torch.isin(drawn, ends)
            if step + 1 == sampling.max_summary_tokens or not is_open.any():
                break
            logits = self._forward(
                drawn.masked_fill(~is_open, self.tokens.pad_id),
                step_mask[..., : held + block + (step + 1) * leaves],
                start + self.lengths + step,
                leaves,
            )
        return self._leaves(torch.stack(tokens), torch.stack(logprobs))

    def _masks(self, steps: int) -> tuple[Tensor, Tensor]:
        """Who sees whom: the trunk up to the cut, then the leaf itself.

        Returns:
            For the forced text (R, F N, T + F N), and for one summary token of each leaf
            (R, N, T + (F + steps) N), to be cut off at the columns that stand there.
        """
        attended = self.trunks.attended.bool()
        rows, held = attended.shape
        leaves, depth, device = self.count, self.longest, attended.device
        column = torch.arange(held, device=device)
        below = column < self.trunks.width + self.cut[..., None]
        on_trunk = attended[:, None] & below  # (R, N, T)
        time = torch.arange(depth, device=device)
        real = time[None, :, None] >= (depth - self.lengths)[:, None]  # (R, F, N): not padding
        same = torch.eye(leaves, dtype=torch.bool, device=device)
        causal = (time[:, None] >= time[None, :])[:, None, :, None] & same[None, :, None, :]
        own = (causal[None] & real[:, None, None]).reshape(rows, depth * leaves, depth * leaves)
        # Padding sees itself, so that no softmax is empty.
        own = own | torch.eye(depth * leaves, dtype=torch.bool, device=device)
        forced = torch.cat([on_trunk.repeat(1, depth, 1), own], dim=2)
        before = (real.transpose(1, 2)[:, :, :, None] & same[:, None]).reshape(
            rows, leaves, depth * leaves
        )
        after = same.repeat(1, steps).expand(rows, -1, -1)
        return forced, torch.cat([on_trunk, before, after], dim=2)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, leaves: int) -> Tensor:
        model = self.trunks.model
        mask = mask[:, None]
        if model.config._attn_implementation == "eager":  # adds its mask to the scores
            lowest = torch.finfo(model.dtype).min
            mask = torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, lowest)
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.trunks.cache,
            use_cache=True,
            logits_to_keep=leaves,
        )
        return out.logits[:, -leaves:]

    def _leaves(self, tokens: Tensor, logprobs: Tensor) -> list[list[Leaf]]:
        drawn, values = tokens.permute(1, 2, 0).tolist(), logprobs.permute(1, 2, 0).tolist()
        return [
            [
                summary_leaf(self.tokens, cut, self.forced[row][n], drawn[row][n], values[row][n])
                for n, cut in enumerate(own)
            ]
            for row, own in enumerate(self.cuts)
        ]


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
    inner = inner_model(model)
    parameters = inspect.signature(inner.forward).parameters
    if "position_ids" not in parameters or "logits_to_keep" not in parameters:
        return "its forward takes no position_ids or logits_to_keep"
    if not getattr(inner, "_supports_attention_backend", False):
        return f"{type(inner).__name__} does not use transformers' attention interface"
    return ""


def inner_model(model: PreTrainedModel) -> PreTrainedModel:
    """A model without the wrapper of its adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def turn_ends(model: PreTrainedModel) -> frozenset[int]:
    """Tokens that the model's own settings call the end of a turn; there may be several."""
    configs = (model.generation_config, model.config.get_text_config())
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
        ends = (tokens.eos_ids | turn_ends(model)) - {tokens.close_id}
        self.tokens = replace(tokens, eos_ids=ends)
        self._reason = why_not_branching(model) if branches else "as asked for"
        self._batched: bool | None = None  # whether `generate` takes rows together, once tried
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
        budgets = check_request(prompts, budgets, num_summaries)
        generator = self._generator(seed)
        size = self.batch_size or max(1, len(prompts))
        trees: list[Tree] = []
        with sampling_mode(self.model):
            for start in range(0, len(prompts), size):
                batch = prompts[start : start + size]
                if self._reason:
                    with seeded(self.model, generator):
                        trees += super().sample_trees(
                            batch, budgets, num_summaries, sampling, None, share_cuts
                        )
                else:
                    trunks = Trunks(self.model, self.tokens, batch, sampling, generator)
                    trees += _grow(trunks, budgets, num_summaries, share_cuts)
        return trees

    def complete(
        self, prefixes: list[Prefix], limit: int, thinks: bool, sampling: Sampling
    ) -> list[list[Continuation]]:
        """See `Engine.complete`; by plain generate, and the global random state decides."""
        rows = [prefix.ids for prefix in prefixes for _ in range(prefix.count)]
        model, tokens = self.model, self.tokens
        with sampling_mode(model), no_defaults(model):
            if self._batched is None:
                self._batched = _generates_in_batches(model, tokens, max(rows, key=len))
            made = iter(generate_rows(model, tokens, rows, limit, sampling, thinks, self._batched))
        return [[next(made) for _ in range(prefix.count)] for prefix in prefixes]

    def think(self, prompt: Sequence[int], sampling: Sampling, seed: int | None = None) -> Trunks:
        """Begin one thinking, to go on token by token with `step` and branch off by `answers`.

        Raises:
            ValueError: the model cannot branch off its cache.
        """
        if self._reason:
            raise ValueError(
                f"this model cannot answer in the middle of a thinking: {self._reason}."
            )
        with sampling_mode(self.model):
            return Trunks(self.model, self.tokens, [prompt], sampling, self._generator(seed))

    def step(self, trunks: Trunks) -> int:
        """Think one more token of a thinking."""
        with sampling_mode(self.model):
            return trunks.step()[0]

    def answers(self, trunks: Trunks, count: int, seed: int | None = None) -> list[Leaf]:
        """Sample `count` summaries of one thinking as it stands; it can go on afterwards.

        With a seed they depend on nothing else, and the thinking's random state stays its own.
        """
        asked = trunks
        if seed is not None:
            asked = copy.copy(trunks)
            asked.generator = self._generator(seed)
        with sampling_mode(self.model):
            return sample_leaves(asked, [[self.tokens.kept(trunks.thinkings[0])] * count])[0]

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


def _grow(
    trunks: Trunks, budgets: Sequence[int], num_summaries: int, share_cuts: bool
) -> list[Tree]:
    """Think to the end and branch off; rows that ended leave once they are a quarter of a batch."""
    number = list(range(len(trunks.prompts)))  # of each row in the batch
    trees: dict[int, Tree] = {}

    def finish(part: Trunks, numbers: list[int]) -> None:
        wanted = [
            leaf_cuts(part.tokens.kept(thinking), budgets, num_summaries, share_cuts)
            for thinking in part.thinkings
        ]
        leaves = sample_leaves(part, [unique for unique, _ in wanted])
        rows = [[made[i] for i in places] for made, (_, places) in zip(leaves, wanted, strict=True)]
        trees.update(zip(numbers, part.trees(rows), strict=True))

    while trunks.length < budgets[-1] and not all(trunks.ends):
        trunks.step()
        done = [row for row, end in enumerate(trunks.ends) if end]
        if len(trunks.ends) <= 4 * len(done) < 4 * len(trunks.ends):
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


# --- plain generate ------------------------------------------------------------------------------


@contextlib.contextmanager
def seeded(model: PreTrainedModel, generator: torch.Generator | None) -> Iterator[None]:
    # `generate` knows the global random state only: give it ours, and put its own back.
    if generator is None:
        yield
        return
    devices = [] if model.device.type == "cpu" else [model.device]
    with torch.random.fork_rng(devices=devices, device_type=model.device.type):
        seed = torch.randint(2**62, (1,), generator=generator, device=model.device)
        torch.manual_seed(int(seed))
        yield


@contextlib.contextmanager
def no_defaults(model: PreTrainedModel) -> Iterator[None]:
    # A checkpoint's generation_config may hold penalties and filters, which `sampling` has not.
    kept = [(holder, holder.generation_config) for holder in (inner_model(model), model)]
    for holder, _ in kept:
        holder.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for holder, config in kept:
            holder.generation_config = config


def generate_rows(
    model: PreTrainedModel,
    tokens: ThinkingTokens,
    prefixes: Sequence[Sequence[int]],
    limit: int,
    sampling: Sampling,
    thinks: bool,
    batched: bool = True,
) -> list[Continuation]:
    """Continue each prefix by `generate`, up to where `Complete` says."""
    if not batched and len(prefixes) > 1:
        rows = [[prefix] for prefix in prefixes]
        return [generate_rows(model, tokens, row, limit, sampling, thinks, False)[0]
                for row in rows]  # fmt: skip
    ids, mask = _left_padded(model, tokens, prefixes)
    width = ids.shape[1]
    greedy = sampling.temperature == 0
    drawn = {} if greedy else {
        "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k,
        "min_p": sampling.min_p or None,
    }  # fmt: skip
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
        use_cache=batched,
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
    rows = [prompt[: max(1, len(prompt) // 2)], prompt]
    ids, mask = _left_padded(model, tokens, rows)
    out = model.generate(
        input_ids=ids, attention_mask=mask, min_new_tokens=4, max_new_tokens=4, do_sample=False,
        pad_token_id=tokens.pad_id, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    padding = ids.shape[1] - len(rows[0])
    row = out.sequences[:1, padding:]
    plain = model(input_ids=row, use_cache=False).logits[0, len(rows[0]) - 1 : -1]
    told = torch.stack([logits[0] for logits in out.logits])
    apart = (plain.float().softmax(-1) - told.float().softmax(-1)).abs().sum(-1) / 2
    exact = bool(apart.max() < torch.finfo(model.dtype).eps ** 0.5)  # total variation
    if not exact:
        logger.warning(
            "%s generates something else in a batch, or on its cache, than for a row by itself: "
            "rows are sampled one by one without a cache, which is slow.",
            type(model).__name__,
        )
    return exact
