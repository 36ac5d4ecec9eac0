"""Thinkings on a KV cache, and summaries that branch off them without computing a prefix twice.

R rows (thinkings), N leaves per row, T tokens in the cache, F forced tokens, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from anytime_lab.engines.base import Sampling
from anytime_lab.engines.sampling import sample_tokens
from anytime_lab.prompts import ThinkingTokens
from anytime_lab.tree import Leaf, Tree


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
        for row, cuts in enumerate(self.cuts):
            leaves = []
            for n, cut in enumerate(cuts):
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
