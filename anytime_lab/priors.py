"""Budget priors: how much each thinking budget counts (P_j, BRPO eq. 3)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Prior:
    """A probability for each thinking budget.

    Attributes:
        budgets: J increasing token budgets b_1 < … < b_J, each at least 1.
        weights: J probabilities P_j that sum to 1.

    Raises:
        TypeError: budgets are no list, or one is no whole number.
        ValueError: budgets do not increase, or weights are negative, not J many or do not sum to 1.
    """

    budgets: tuple[int, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        budgets, weights = check_budgets(self.budgets), tuple(float(w) for w in self.weights)
        if len(weights) != len(budgets):
            raise ValueError(
                f"the prior has {len(weights)} weights for {len(budgets)} budgets; give one weight "
                "for each budget."
            )
        if bad := [w for w in weights if not (math.isfinite(w) and w >= 0)]:
            raise ValueError(f"prior weights must be 0 or more and finite; got {bad}.")
        if abs(sum(weights) - 1) > 1e-6:
            raise ValueError(
                f"prior weights must sum to 1; they sum to {sum(weights):.6g}. Divide each by the "
                "sum."
            )
        object.__setattr__(self, "budgets", budgets)
        object.__setattr__(self, "weights", weights)

    @classmethod
    def base(cls, budgets: Sequence[int]) -> "Prior":
        """P_m = 1: only the largest budget counts, the standard objective (BRPO eq. 5)."""
        return cls._scaled(budgets, [0.0] * (len(check_budgets(budgets)) - 1) + [1.0])

    @classmethod
    def uniform(cls, budgets: Sequence[int]) -> "Prior":
        """Every budget counts the same."""
        return cls._scaled(budgets, [1.0] * len(check_budgets(budgets)))

    @classmethod
    def linear(cls, budgets: Sequence[int]) -> "Prior":
        """P_j in proportion to b_j."""
        return cls._scaled(budgets, [float(b) for b in check_budgets(budgets)])

    @classmethod
    def geometric(cls, budgets: Sequence[int], ratio: float = 0.5) -> "Prior":
        """P_j in proportion to ratio**j: below 1 early answers count more, above 1 late ones."""
        if not (math.isfinite(ratio) and ratio > 0):
            raise ValueError(f"ratio is {ratio}; expected a positive number, such as 0.5.")
        # Scaled by the largest exponent, so that a long grid does not overflow.
        logs = [j * math.log(ratio) for j in range(len(check_budgets(budgets)))]
        return cls._scaled(budgets, [math.exp(x - max(logs)) for x in logs])

    @classmethod
    def _scaled(cls, budgets: Sequence[int], weights: list[float]) -> "Prior":
        total = sum(weights)
        return cls(tuple(budgets), tuple(w / total for w in weights))


# A prior by its name: what it weighs, and how it is made of budgets and a ratio.
PRIORS: dict[str, tuple[str, Callable[[Sequence[int], float], Prior]]] = {
    "base": ("the largest budget only", lambda budgets, _: Prior.base(budgets)),
    "uniform": ("every budget the same", lambda budgets, _: Prior.uniform(budgets)),
    "linear": ("in proportion to the budget", lambda budgets, _: Prior.linear(budgets)),
    "geometric": ("a ratio from budget to budget", Prior.geometric),
}


def check_budgets(budgets: Sequence[int]) -> tuple[int, ...]:
    """The budgets as a tuple, after checking that they are whole, positive and increasing.

    Raises:
        TypeError: they are no list, or a budget is no whole number.
        ValueError: there is none, one is below 1, or they do not increase.
    """
    if isinstance(budgets, str) or not hasattr(budgets, "__iter__"):
        raise TypeError(f"budgets is {budgets!r:.80}; expected a list of tokens, such as [24, 48].")
    budgets = tuple(budgets)
    if not budgets:
        raise ValueError("budgets is empty; give token budgets such as [24, 48, 72, 96].")
    for b in budgets:
        if isinstance(b, bool) or not hasattr(b, "__index__"):
            raise TypeError(f"budgets holds {b!r} ({type(b).__name__}); expected whole tokens.")
    budgets = tuple(int(b) for b in budgets)
    if budgets[0] < 1 or any(a >= b for a, b in zip(budgets, budgets[1:], strict=False)):
        raise ValueError(
            f"budgets must be 1 or more and increase; got {list(budgets)}. Sort them, shortest "
            "first, without repeats."
        )
    return budgets
