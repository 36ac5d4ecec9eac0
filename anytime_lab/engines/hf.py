"""Thoughts of a transformers model: one KV cache for the thinking and all its answers."""

import contextlib
import copy
import inspect
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from anytime_lab.engines.base import Sampling, sample_tokens, sample_trees_by_generate
from anytime_lab.engines.thoughts import Answer, Prompt, ThinkingError, answer_seed
from anytime_lab.priors import check_budgets
from anytime_lab.prompts import (
    PieceReader,
    ThinkingFormat,
    ThinkingTokens,
    decode,
    detect_format,
    prompt_ids,
)
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
        width = max(map(len, distinct))
        pad = self.tokens.pad_id
        device = self.model.device
        ids = torch.tensor([[pad] * (width - len(p)) + [*p] for p in distinct], device=device)
        mask = torch.tensor(
            [[0] * (width - len(p)) + [1] * len(p) for p in distinct], device=device
        )
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
        rows = torch.tensor([row_of[p] for p in self.prompts], device=device)
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
            if token == self.tokens.close_id:
                self.ends[row] = "closed"
            elif token in self.tokens.eos_ids:
                self.ends[row] = "eos"
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
            [self.tokens.forced(end or "length", cut, len(thinking)) for cut in row]
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
        tokens, logprobs, opened = [], [], []
        for step in range(sampling.max_summary_tokens):
            drawn, values = sample_tokens(logits, sampling, trunks.generator)
            tokens.append(drawn)
            logprobs.append(values)
            opened.append(is_open)
            is_open = is_open & ~torch.isin(drawn, ends)
            if step + 1 == sampling.max_summary_tokens or not is_open.any():
                break
            logits = self._forward(
                drawn.masked_fill(~is_open, self.tokens.pad_id),
                step_mask[..., : held + block + (step + 1) * leaves],
                start + self.lengths + step,
                leaves,
            )
        return self._leaves(torch.stack(tokens), torch.stack(logprobs), torch.stack(opened))

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

    def _leaves(self, tokens: Tensor, logprobs: Tensor, opened: Tensor) -> list[list[Leaf]]:
        drawn, values = (tokens.permute(1, 2, 0).tolist(), logprobs.permute(1, 2, 0).tolist())
        sizes = opened.sum(0).tolist()
        made = []
        for row, own in enumerate(self.cuts):
            leaves = []
            for n, cut in enumerate(own):
                size = sizes[row][n]
                summary = tuple(drawn[row][n][:size])
                leaves.append(
                    Leaf(
                        cut=cut,
                        forced=self.forced[row][n],
                        summary=summary,
                        logprobs=tuple(values[row][n][:size]),
                        finished=summary[-1] in self.tokens.eos_ids,
                    )
                )
            made.append(leaves)
        return made


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


DEFAULT_SAMPLING = Sampling()


class HFThinker:
    """Begins thoughts of a transformers model; see `thoughts.Thinker`.

    Several may think at once, from several threads: they take turns by the token.

    Args:
        engine: Holds the model.
        tokenizer: Of the model.
        fmt: Its format; by what the tokenizer supports if None.
        sampling: How tokens are drawn, and how long a summary may be. Its temperature is not used.
        name: For titles; the model's own if empty.
        chat_template_kwargs: For the chat template.
    """

    def __init__(
        self,
        engine: HFEngine,
        tokenizer: PreTrainedTokenizerBase,
        fmt: ThinkingFormat | None = None,
        sampling: Sampling = DEFAULT_SAMPLING,
        name: str = "",
        chat_template_kwargs: dict | None = None,
    ):
        self.engine, self.tokenizer = engine, tokenizer
        self.fmt = fmt or detect_format(tokenizer)
        self.sampling = sampling
        self.name = name or engine.model.config.name_or_path or type(engine.model).__name__
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.lock = threading.Lock()  # one step at a time: the model's mode is switched around it

    def think(self, prompt: Prompt, temperature: float = 1.0, seed: int = 0) -> "HFThought":
        """See `Thinker.think`."""
        ids = prompt_ids(prompt, self.tokenizer, self.fmt, self.chat_template_kwargs)
        room = thinking_room(self.engine.context_length, ids, self.engine.tokens, self.sampling)
        sampling = replace(self.sampling, temperature=temperature)
        with self.lock:
            trunks = self.engine.think(ids, sampling, seed)
        return HFThought(self, trunks, room, seed)


class HFThought:
    """A thinking on its cache; see `thoughts.Thought`."""

    def __init__(self, thinker: HFThinker, trunks: Trunks, room: int | None, seed: int):
        self.thinker, self.trunks, self.room, self.seed = thinker, trunks, room, seed
        self.text, self.length, self.end = "", 0, ""
        self._reader = PieceReader(thinker.tokenizer, thinker.engine.tokens)

    def step(self) -> str:
        """See `Thought.step`."""
        trunks = self._open()
        if self.end:
            return ""
        if self.room is not None and self.length >= self.room:
            self.end = "length"
            return self._add(self._reader.rest())
        with self.thinker.lock, sampling_mode(trunks.model):
            (token,) = trunks.step()
        self.length += 1
        self.end = trunks.ends[0]
        piece = self._reader.read(token)
        return self._add(piece + (self._reader.rest() if self.end else ""))

    def answers(self, count: int) -> list[Answer]:
        """See `Thought.answers`."""
        trunks = self._open()
        engine, tokenizer = self.thinker.engine, self.thinker.tokenizer
        asked = copy.copy(trunks)  # the same cache, but the thinking's random state stays its own
        device = trunks.attended.device
        asked.generator = torch.Generator(device)
        asked.generator.manual_seed(answer_seed(self.seed, self.length))
        with self.thinker.lock:
            leaves = engine.answers(asked, count)
        return [
            Answer(
                forced=decode(tokenizer, engine.tokens, leaf.forced),
                text=decode(tokenizer, engine.tokens, leaf.summary),
                tokens=len(leaf.summary),
                logprob=sum(leaf.logprobs),
                finished=leaf.finished,
            )
            for leaf in leaves
        ]

    def close(self) -> None:
        """See `Thought.close`; frees the cache."""
        self.trunks = None

    def _open(self) -> Trunks:
        trunks = self.trunks
        if trunks is None:
            raise ThinkingError("this thought was closed; begin another.")
        return trunks

    def _add(self, piece: str) -> str:
        self.text += piece
        return piece


def thinking_room(context: int | None, prompt, tokens, sampling: Sampling) -> int | None:
    """Tokens of thinking that fit beside the prompt, the forced text and a summary.

    Args:
        context: Positions of the model; None where it has no limit.
        prompt: Token ids.
        tokens: ThinkingTokens.
        sampling: For the length of a summary.

    Raises:
        ThinkingError: none fit.
    """
    if context is None:
        return None
    forced = max(len(tokens.cut_ids), len(tokens.header_ids))
    room = context - len(prompt) - forced - sampling.max_summary_tokens
    if room < 1:
        raise ThinkingError(
            f"the model's context is {context:,} tokens; prompt {len(prompt):,} + forced text "
            f"{forced:,} + summary {sampling.max_summary_tokens:,} leave none to think. Give a "
            "shorter problem, or a smaller max_summary_tokens."
        )
    return room
