"""How sure a classifier is of its answers on the test split, and how often it is right: a reliability diagram."""

from __future__ import annotations

from torch import Tensor

from compress.run.differing import TopAnswers
from compress.run.ledger import ReliabilityBin

BINS = 10


def reliability(answers: TopAnswers, labels: Tensor) -> tuple[ReliabilityBin, ...]:
    """Return the answers by their probability, in tenths of equal width; tenths without an answer are left out.

    The tenths are those of the reliability diagrams of Guo et al., On Calibration of Modern Neural Networks (2017).

    Args:
        answers: what a network answered to the split, N images.
        labels: their true classes, int64 (N,).
    """
    known = answers.probabilities.isfinite()  # what is not finite is no probability
    shares = answers.probabilities[known].double().clamp(0.0, 1.0)
    right = (answers.classes == labels.cpu())[known]
    place = ((shares * BINS).ceil() - 1).clamp(min=0)
    return tuple(
        ReliabilityBin(
            low=index / BINS,
            high=(index + 1) / BINS,
            images=int(own.sum()),
            right=int(right[own].sum()),
            probability=min(float(shares[own].mean()), 1.0),
        )
        for index in range(BINS)
        if (own := place == index).any()
    )
