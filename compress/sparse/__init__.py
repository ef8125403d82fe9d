"""Sparse networks: weights go, shapes stay. One mask mechanism, and the methods that choose masks.

optimizer = sparse.GSM(model.named_parameters(), lr=0.03, keep=sparse.keep_for_bytes(model, 40_000))
...                                              # train
masks = sparse.largest(model, optimizer.keep)    # cut; nothing is trained after it
masks.apply_(model)

Zeros here and there make a file small. They do not make a dense runtime fast: for that, cut channels
(``compress.prune``) or take ``two_of_four`` on hardware that has it.
"""

from compress.sparse.dns import DynamicSurgery
from compress.sparse.dsd import dense_sparse_dense
from compress.sparse.gradual import Gradual
from compress.sparse.gsm import GSM, active, weight_decay_for
from compress.sparse.lobs import prune_layers
from compress.sparse.magnitude import (
    at_random,
    by_deviation,
    gradual_density,
    largest,
    largest_per_layer,
    prune_and_retrain,
    two_of_four,
)
from compress.sparse.masks import Keep, Masks, Train, together, weights_of
from compress.sparse.measures import (
    Approximation,
    Reactivation,
    Readiness,
    approximation,
    layers_alone,
    layers_dropped,
    readiness,
)
from compress.sparse.pacnet import calibrating, prune_allocate_calibrate, pull_to
from compress.sparse.runtime import by_rows, keep_for_milliseconds, milliseconds
from compress.sparse.storage import keep_for_bytes, load_sparse, save_sparse, sparse_bytes
from compress.sparse.tickets import fewer, find_ticket, redraw, rewind
from compress.sparse.unit_gsm import UnitGSM, plan_of_largest

__all__ = [
    "GSM",
    "Approximation",
    "DynamicSurgery",
    "Gradual",
    "Keep",
    "Masks",
    "Reactivation",
    "Readiness",
    "Train",
    "UnitGSM",
    "active",
    "approximation",
    "at_random",
    "by_deviation",
    "by_rows",
    "calibrating",
    "dense_sparse_dense",
    "fewer",
    "find_ticket",
    "gradual_density",
    "keep_for_bytes",
    "keep_for_milliseconds",
    "largest",
    "largest_per_layer",
    "layers_alone",
    "layers_dropped",
    "load_sparse",
    "milliseconds",
    "plan_of_largest",
    "prune_allocate_calibrate",
    "prune_and_retrain",
    "prune_layers",
    "pull_to",
    "readiness",
    "redraw",
    "rewind",
    "save_sparse",
    "sparse_bytes",
    "together",
    "two_of_four",
    "weight_decay_for",
    "weights_of",
]
