"""By hand: cosine hints, gradual masks step by step, and nonzero weights alone giving what dense layers give."""

import pytest
import torch
from torch import nn

from compress import sparse
from compress.distill.losses import cosine_hint_loss
from compress.errors import ModelError


def test_the_cosine_of_hints_by_hand():
    student, teacher = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[4.0, 3.0], [0.0, -1.0]])
    # 1 - 24/25 and 1 - (-1)
    assert float(cosine_hint_loss(student, teacher)) == pytest.approx((0.04 + 2) / 2)
    assert float(cosine_hint_loss(7 * teacher, teacher)) == pytest.approx(0, abs=1e-6)


def test_gradual_masks_thin_along_the_cubic_and_nothing_comes_back():
    torch.manual_seed(0)
    network = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    gradual = sparse.Gradual(16, 4)
    gradual.follow(network, optimizer)
    alive, seen = torch.ones(8, 8, dtype=torch.bool), []
    for _ in range(6):
        optimizer.zero_grad()
        network(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
        now = network.weight != 0
        assert not bool((now & ~alive).any())
        alive = now
        seen.append(int(now.sum()))
    # 64 (1/4 + 3/4 (1 - t/4)^3)
    assert seen == [36, 22, 17, 16, 16, 16]
    with pytest.raises(ModelError, match="0 steps"):
        sparse.Gradual(1, 0)


def test_nonzero_weights_alone_give_what_the_dense_layers_give():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(72, 5)
    ).eval()
    sparse.largest(network, 100).apply_(network)
    image = torch.randn(2, 3, 10, 10)
    with torch.inference_mode():
        assert torch.allclose(sparse.by_rows(network)(image), network(image), atol=1e-6)


def test_milliseconds_that_no_density_meets_are_refused():
    with pytest.raises(ModelError, match="cannot be kept"):
        sparse.keep_for_milliseconds(nn.Linear(64, 64), torch.randn(1, 64), 1e-9)
