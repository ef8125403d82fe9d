"""Training that feels int8: what is rounded, how gradients pass, and that the int8 file is closer for it."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from compress.errors import NiwakiError
from compress.train.fake_quantize import round_input, round_weight, rounded

pytestmark = pytest.mark.heavy


def network(seed=0):
    torch.manual_seed(seed)
    body = [nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()]
    body += [nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 8, 1), nn.ReLU6()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def settled(seed=0):
    model, x = network(seed), torch.randn(32, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    for _ in range(20):
        model(x)
    return model.eval(), x


def test_inputs_have_256_steps_and_weights_255_a_channel():
    x = torch.linspace(-1, 3, 1001)
    signed, unsigned = round_input(x, -1.0, 3.0), round_input(x.clamp_min(0), 0.0, 3.0)
    assert (len(signed.unique()), len(unsigned.unique())) == (1 + 127 + 42, 256)
    assert float((signed - x).abs().max()) <= 3 / 127 * 0.501
    assert float((unsigned - x.clamp_min(0)).abs().max()) <= 3 / 255 * 0.501
    assert torch.equal(round_input(x, 0.0, 0.0), x)
    weight = torch.stack([torch.linspace(-1, 1, 1000), torch.linspace(-9, 5, 1000), torch.zeros(1000)])
    found = round_weight(weight)
    assert [len(row.unique()) for row in found] == [255, 127 + 1 + 71, 1]
    assert ((found - weight).abs().amax(1) <= torch.tensor([1.0, 9.0, 0.0]) / 127 * 0.501).all()


def test_gradients_pass_as_if_nothing_were_rounded_inside_the_range():
    x = torch.tensor([-2.0, -0.5, 0.3, 0.9, 4.0], requires_grad=True)
    round_input(x, -1.0, 1.0).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_inside_it_computes_rounded_and_afterwards_it_is_plain_again():
    model, x = settled()
    names, before = list(model.state_dict()), model(x).detach()
    with rounded(model, [x]):
        assert list(model.state_dict()) == names
        within = model(x).detach()
        twin = copy.deepcopy(model)
        assert torch.equal(twin(x), within)
        model[0].weight.data.mul_(2.0)
        assert torch.equal(twin(x), within)  # a copy has weights of its own
        model[0].weight.data.div_(2.0)
    assert 0 < float((within - before).abs().max() / before.abs().max()) < 0.1
    assert torch.equal(model(x), before)
    assert [type(m) for m in model.modules()] == [type(m) for m in network().modules()]
    assert not any("_span" in vars(m) for m in model.modules())


def test_an_error_inside_leaves_it_plain():
    model, x = settled()
    with pytest.raises(KeyError), rounded(model, [x]):
        raise KeyError
    assert type(model[0]) is nn.Conv2d


def test_flags_of_training_stay():
    model, x = settled()
    model.train()
    model[1].eval()
    flags = [m.training for m in model.modules()]
    with rounded(model, [x]):
        assert [m.training for m in model.modules()] == flags


def test_without_images_or_layers_it_says_so():
    with pytest.raises(NiwakiError, match="0 batches of images"), rounded(network(), []):
        pass
    with pytest.raises(NiwakiError, match="0 layers"), rounded(nn.ReLU(), [torch.zeros(1, 1, 2, 2)]):
        pass


def test_it_foresees_the_int8_file(tmp_path):
    pytest.importorskip("nncf", reason="NNCF is not installed")
    import onnx
    from onnx.reference import ReferenceEvaluator

    from deploy.exporting.torch_to_onnx import export_onnx
    from deploy.quantization.int8 import int8_from_fp32

    model, x = settled()
    path = export_onnx(model, x[:2], tmp_path / "m.fp32.onnx")
    int8 = int8_from_fp32(path, tmp_path / "m.int8.onnx", list(x.numpy()))
    exact = onnx.load(int8)
    exact.opset_import[
        0
    ].version = 21  # the evaluator knows quantisers from 19 on; on some processors runtimes saturate
    (answer,) = ReferenceEvaluator(exact).run(None, {"image": x.numpy()})
    with torch.no_grad():
        plain = model(x).numpy()
        with rounded(model, list(x.split(1))):
            foreseen = model(x).numpy()
    lost, guessed = (answer - plain).ravel(), (foreseen - plain).ravel()
    assert np.corrcoef(lost, guessed)[0, 1] > 0.5
    assert np.square(foreseen - answer).mean() < np.square(plain - answer).mean()


def test_training_inside_lowers_the_loss_of_the_rounded_network():
    """Weights so uneven within a channel that rounding hurts: training finds weights that it hurts less."""
    model, x = settled(3)
    with torch.no_grad():
        model[4].weight[:, 0] *= 60.0
        model[3].weight[0] /= 60.0
        wanted = model(x)
    student = copy.deepcopy(model)
    with rounded(student, [x]):
        first = float(nn.functional.mse_loss(student(x), wanted).detach())
        optimizer = torch.optim.Adam(student.parameters(), 1e-3)
        for _ in range(60):
            loss = nn.functional.mse_loss(student(x), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        last = float(nn.functional.mse_loss(student(x), wanted).detach())
    assert last < 0.5 * first
