"""How long the numbers are that an expression asks for, found without working them out."""

import math
from collections.abc import Mapping

import sympy

MAX_DIGITS = 50_000  # of a number that a worker writes out; golds of MATH go up to 1500
_TALLEST = 300.0  # the exponent up to which a float is a bound; beyond it all is one


def longest_number(expression: sympy.Basic, point: Mapping[sympy.Symbol, sympy.Rational]) -> float:
    """Decimal digits of the longest number met on the way to the value at a point.

    A bound, near or above the truth, for numbers, powers, exponentials, factorials, binomials,
    sums and products; infinite where it is beyond all writing out. What integrals, limits and
    derivatives need is not seen from their parts: they count as nothing.
    """
    walk = _Walk()
    walk.bound(expression, {name: _log(value) for name, value in point.items()})
    return walk.longest


class _Walk:
    """One pass over a tree; each node has a bound of log10 |value| and of its digits as written."""

    def __init__(self) -> None:
        self.longest = 0.0

    def bound(self, node: sympy.Basic, names: Mapping[sympy.Symbol, float]) -> tuple[float, float]:
        """(log10 |value|, digits of the fraction that is the value) of a node."""
        size, digits = self._bound(node, names)
        self.longest = max(self.longest, digits)
        return size, digits

    def _bound(self, node: sympy.Basic, names: Mapping[sympy.Symbol, float]) -> tuple[float, float]:
        if isinstance(node, sympy.Rational):
            return _log(node), 0.302 * max(node.p.bit_length(), node.q.bit_length())
        if isinstance(node, sympy.Float):
            return _log(node), abs(_log(node))
        if isinstance(node, (sympy.Derivative, sympy.Limit, sympy.Integral)):
            return 0.0, 0.0
        if isinstance(node, (sympy.Sum, sympy.Product)):
            names, terms = {**names}, 0.0
            for name, *ends in node.limits:
                names[name] = max((self.bound(end, names)[0] for end in ends), default=1.0)
                terms += names[name]
            size, digits = self.bound(node.function, names)
            if isinstance(node, sympy.Sum):
                return size + terms, digits
            return size * _power(terms), digits * _power(terms)
        parts = [self.bound(argument, names) for argument in node.args]
        if not parts:
            return names.get(node, 0.6), 4.0  # a name at a point, or a constant such as π
        sizes, digits = [size for size, _ in parts], sum(digits for _, digits in parts)
        if isinstance(node, sympy.Pow) and node.base in (0, 1, -1):
            return 0.0, 1.0
        if isinstance(node, (sympy.Pow, sympy.exp)):
            base, times = abs(sizes[0] if len(sizes) == 2 else 0.44), _power(sizes[-1])
            whole = isinstance(node.args[-1], sympy.Integer) or not node.args[-1].free_symbols
            written = parts[0][1] if whole and len(sizes) == 2 else base
            return base * times, max(base, written) * times
        if isinstance(node, (sympy.factorial, sympy.gamma, sympy.factorial2)):
            size = math.lgamma(min(_power(sizes[0]), 1e15) + 1.0) / math.log(10)
            return size, size
        if isinstance(node, sympy.binomial):
            size = max(max(sizes), 1.0) * _power(min(sizes))
            return size, size
        if isinstance(node, sympy.Mul):
            return sum(sizes), digits
        return max(sizes) + math.log10(len(sizes)), digits


def _log(number: sympy.Number) -> float:
    """log10 |number|, -infinity's place taken by 0."""
    if isinstance(number, sympy.Rational):
        p, q = abs(int(number.p)), int(number.q)
        return (math.log10(p) - math.log10(q)) if p else 0.0
    return float(sympy.log(abs(number), 10)) if number.is_finite and number else 0.0


def _power(size: float) -> float:
    """10 ** size, infinite beyond what a float holds."""
    return 10.0**size if size < _TALLEST else math.inf
