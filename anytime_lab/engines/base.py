"""What an engine is: it samples rollout trees. Training and evaluation use the same ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from anytime_lab.tree import Tree


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: Keep the likeliest tokens that hold this much probability.
        top_k: Keep this many likeliest tokens; 0 keeps all.
        min_p: Keep tokens at least this likely relative to the likeliest.
        max_summary_tokens: Most tokens sampled for a summary, without the forced text.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_summary_tokens: int = 118

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}; expected 0 (greedy) or more.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected above 0 and at most 1 (all).")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; expected 0 (all) or a count of tokens.")
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p is {self.min_p}; expected 0 (all) or more, below 1.")
        if self.max_summary_tokens < 1:
            raise ValueError(
                f"max_summary_tokens is {self.max_summary_tokens}; expected at least 1."
            )


class Engine(Protocol):
    """Samples one tree for each prompt."""

    def sample_trees(
        self,
        prompts: Sequence[Sequence[int]],
        budgets: Sequence[int],
        num_summaries: int,
        sampling: Sampling,
        seed: int | None = None,
        share_cuts: bool = False,
    ) -> list[Tree]:
        """Sample a thinking of at most `budgets[-1]` tokens and its summaries for each prompt.

        Args:
            prompts: Token ids, think-open marker included. Repeat a prompt for several samples.
            budgets: Increasing numbers of thinking tokens.
            num_summaries: Summaries for each budget.
            sampling: How tokens are drawn.
            seed: Makes the result depend on nothing else; None takes the global random state.
            share_cuts: Let the budgets past the end of a thinking share their summaries, instead of
                sampling new ones. There are J·S leaves either way.
        """
        ...
