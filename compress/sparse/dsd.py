"""Dense, sparse, dense (Han et al., ICLR 2017): a thinned network is easier to train, then all weights come back."""

from __future__ import annotations

from torch import nn

from compress.errors import TrainingError
from compress.sparse.magnitude import largest_per_layer
from compress.sparse.masks import Layers, Masks, Train


def dense_sparse_dense(model: nn.Module, train: Train, sparsity: float = 0.3, layers: Layers = "all") -> Masks:
    """Thin a trained network layer by layer, train it thinned, release what went from zero, train it whole.

    Args:
        model: trained; dense again in the end.
        train: called for ``sparse``, holding masks, then for ``dense``, at a tenth of the first learning rate.
        sparsity: share of each layer that is zero in between; the paper takes 0.25 to 0.5.
        layers: which kinds.

    Returns:
        The masks of the phase in between.

    Raises:
        TrainingError: ``train`` did not keep the masks.
    """
    masks = largest_per_layer(model, 1 - sparsity, layers)
    masks.apply_(model)
    train(model, masks.hold, "sparse")
    broken = masks.broken(model)
    if broken:
        raise TrainingError(
            f"The sparse phase left weights in '{broken[0]}' that its mask drops; let `train` call keep."
        )
    train(model, None, "dense")
    return masks
