"""The rule table: ATen operator -> what it does to channel labels, one line of algebra each.

A rule takes the tracer and one call and returns the labels of its output. An operator that is not in ``RULES``
protects every channel that reaches it and is reported by name; it is never guessed.
"""

from compress.prune.rules import moves, norms, pointwise, products, space
from compress.prune.rules.base import CONSTANT, READERS, Call, Labeller, Role, Rule, tensors

MOVES = frozenset(moves.RULES)
"""Operators that only move elements, by sizes and positions that the code names: after a cut they may move others."""

POINTWISE = frozenset(pointwise.RULES)
"""Operators that compute element by element: their plain numbers are values, not sizes."""

RULES: dict[str, Rule] = {**pointwise.RULES, **products.RULES, **norms.RULES, **space.RULES, **moves.RULES}

__all__ = ["CONSTANT", "MOVES", "POINTWISE", "READERS", "RULES", "Call", "Labeller", "Role", "Rule", "tensors"]
