"""Exact structured pruning: trace channels, score them, plan what stays, cut, and prove the cut.

trace = prune.trace(model, example)
scores = prune.score(trace, model, "l1")
plan = prune.plan(trace, scores, budget=prune.Budget(macs=0.5), round_to=8)
small = prune.apply(model, plan)
prune.check(model, plan, example)
"""

from compress.prune.allocation import smallest_share
from compress.prune.budget import Budget
from compress.prune.criteria import CRITERIA, normalized, score
from compress.prune.curves import Sensitivity
from compress.prune.evolution import Evolution, evolve, recalibrated
from compress.prune.planning import Plan, plan
from compress.prune.proof import Proof, check
from compress.prune.reconstruction import Reconstruction, reconstruct
from compress.prune.residual import Block, Blocks, blocks, plan_of_blocks
from compress.prune.sensitivity import correlations, measure_sensitivity, rank_correlation
from compress.prune.shrinking import shrink
from compress.prune.surgery import apply, mask, validate
from compress.prune.tracing import trace
from compress.prune.units import Group, Trace, protect
from compress.prune.widths import carried, plan_of_widths, uniform

__all__ = [
    "CRITERIA",
    "Block",
    "Blocks",
    "Budget",
    "Evolution",
    "Group",
    "Plan",
    "Proof",
    "Reconstruction",
    "Sensitivity",
    "Trace",
    "apply",
    "blocks",
    "carried",
    "check",
    "correlations",
    "evolve",
    "mask",
    "measure_sensitivity",
    "normalized",
    "plan",
    "plan_of_blocks",
    "plan_of_widths",
    "protect",
    "rank_correlation",
    "recalibrated",
    "reconstruct",
    "score",
    "shrink",
    "smallest_share",
    "trace",
    "uniform",
    "validate",
]
