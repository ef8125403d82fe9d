"""Substituted attention: the same function under the same names, with an inner width that can be cut."""

import copy
import io

import pytest
import torch
from attention_nets import (
    CALLS,
    HEAD_DIM,
    HEADS,
    MHA,
    E,
    attention,
    close,
    drawn,
    encoder,
    hides,
    padding,
    replaced,
    same,
    tokens,
    values,
)
from torch import nn
from torchvision.models import MaxVit, SwinTransformer, VisionTransformer
from torchvision.models.maxvit import RelativePositionalMultiHeadAttention
from torchvision.models.swin_transformer import (
    PatchMergingV2,
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
    SwinTransformerBlockV2,
)

from compress.errors import PlanError
from compress.prune.attention import SUBSTITUTES, MultiheadAttention, Substitute, substitute, substitute_for

pytestmark = pytest.mark.heavy

# Module by module -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", MHA.values(), ids=MHA)
@pytest.mark.parametrize("options", CALLS.values(), ids=CALLS)
def test_cross_attention_is_the_original_s(settings, options):
    net = attention(**settings)
    q, k, v = (tokens(net, n, w, n + w) for n, w in ((5, E), (6, net.kdim), (6, net.vdim)))
    same(net, q, k, v, run=lambda net, *x: net(*x, **options))


@pytest.mark.parametrize("settings", [s for s in MHA.values() if "kdim" not in s])
@pytest.mark.parametrize("name", ["plain", "weights", "padding", "both masks", "causal"])
def test_self_attention_is_the_original_s(settings, name):
    options = {k: m[..., :5, :5] if k == "attn_mask" else m for k, m in CALLS[name].items()}
    if "key_padding_mask" in options:
        options["key_padding_mask"] = options["key_padding_mask"][:, :5]
    net = attention(**settings)
    same(net, tokens(net, 5, E, 1), run=lambda net, x: net(x, x, x, **options))


def test_keys_that_are_the_values_and_inputs_without_a_batch():
    for net in (attention(), attention(batch_first=False), attention(kdim=5, vdim=5)):
        query, memory = values(5, E), values(6, net.kdim)
        same(net, tokens(net, 5, E, 1), tokens(net, 6, net.kdim, 2), run=lambda net, q, m: net(q, m, m))
        same(net, query, memory, run=lambda net, q, m: net(q, m, m, key_padding_mask=hides(6)))
        same(net, query, memory, run=lambda net, q, m: net(q, m, m, attn_mask=hides(HEADS, 5, 6), need_weights=False))


def test_one_input_takes_one_projection(monkeypatch):
    net, products = replaced(attention()), []
    linear = nn.functional.linear
    monkeypatch.setattr(nn.functional, "linear", lambda *a: products.append(a[1].shape) or linear(*a))
    x = values(2, 5, E)
    net(x, x, x)
    assert products == [(3 * E, E), (E, E)]


def test_a_causal_hint_without_a_mask_is_an_error_there_and_here():
    x = values(2, 5, E)
    with pytest.raises(RuntimeError, match="attn_mask"):
        attention()(x, x, x, is_causal=True)
    with pytest.raises(ValueError, match="give the causal mask"):
        replaced(attention())(x, x, x, is_causal=True)


WINDOWS = {
    "whole windows": ((2, 8, 12), (4, 4), (0, 0)),
    "padding": ((2, 7, 10), (4, 4), (0, 0)),
    "shift": ((2, 8, 12), (4, 4), (2, 2)),
    "shift and padding": ((2, 7, 9), (4, 4), (2, 2)),
    "one window high": ((2, 3, 9), (4, 3), (2, 1)),
    "shift of one axis": ((2, 8, 9), (4, 3), (0, 1)),
    "one window": ((1, 4, 4), (4, 4), (2, 2)),
}


@pytest.mark.parametrize("kind", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
@pytest.mark.parametrize(("shape", "window", "shift"), WINDOWS.values(), ids=WINDOWS)
def test_window_attention_is_the_original_s(kind, shape, window, shift):
    same(drawn(kind(E, list(window), list(shift), HEADS)), values(*shape, E))


@pytest.mark.parametrize("kind", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
def test_window_attention_without_bias_or_with_dropout(kind):
    x = values(2, 7, 9, E)
    same(drawn(kind(E, [4, 4], [2, 2], HEADS, qkv_bias=False, proj_bias=False)), x)
    same(drawn(kind(E, [4, 4], [2, 2], HEADS, dropout=0.3)), x)
    ours = replaced(drawn(kind(E, [4, 4], [2, 2], HEADS, attention_dropout=0.5)))
    assert not torch.equal(ours.train()(x), ours(x))
    assert torch.equal(ours.eval()(x), ours(x))


def test_relative_attention_is_the_original_s():
    same(drawn(RelativePositionalMultiHeadAttention(E, HEAD_DIM, 16)), values(2, 3, 16, E))


# Inside networks ------------------------------------------------------------------------------------------


def vit():
    return drawn(VisionTransformer(16, 8, 2, HEADS, E, 16, num_classes=5, attention_dropout=0.2))


def swin():
    return drawn(SwinTransformer([4, 4], E, [2, 2], [2, 4], [3, 3], stochastic_depth_prob=0.0, num_classes=5))


def swin_v2():
    parts = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    return drawn(SwinTransformer([4, 4], E, [2, 2], [2, 4], [3, 3], stochastic_depth_prob=0.0, num_classes=5, **parts))


def maxvit():
    return drawn(MaxVit((32, 32), 8, 4, [8, 16], [1, 1], 4, 0.0, num_classes=5))


NETS = {"vit": (vit, 16), "swin": (swin, 28), "swin v2": (swin_v2, 28), "maxvit": (maxvit, 32)}


@pytest.mark.parametrize(("make", "side"), NETS.values(), ids=NETS)
def test_torchvision_networks_stay_what_they_are(make, side):
    net, x = make(), values(4, 3, side, side)
    ours = same(net, x)
    again = copy.deepcopy(ours)
    saved = io.BytesIO()
    torch.save(ours, saved)
    loaded = torch.load(io.BytesIO(saved.getvalue()), weights_only=False)
    for other in (again, loaded):
        assert [type(m) for m in other.modules()] == [type(m) for m in ours.modules()]
        close(other.eval()(x), net.eval()(x))
    net.load_state_dict(ours.state_dict())


@pytest.mark.parametrize(("make", "side"), NETS.values(), ids=NETS)
def test_the_meta_device_is_enough(make, side):
    x = torch.empty(4, 3, side, side, device="meta", dtype=torch.float64)
    ours = replaced(make().to("meta"))
    for train in (False, True):
        assert ours.train(train)(x).shape == (4, 5)
    moved = replaced(make()).to("meta")
    assert moved(x).is_meta


@pytest.mark.parametrize(("make", "side"), NETS.values(), ids=NETS)
def test_half_precision_and_autocast(make, side):
    net, x = make().eval(), values(2, 3, side, side)
    ours = replaced(net)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got, expected = ours.float()(x.float()), copy.deepcopy(net).float()(x.float())
        torch.testing.assert_close(got, expected, rtol=0.1, atol=0.1)
    with torch.no_grad():
        assert ours.bfloat16()(x.bfloat16()).isfinite().all()


@pytest.fixture
def calls(monkeypatch):
    """Counts the times that our attention runs."""
    seen, forward = [], MultiheadAttention.forward
    monkeypatch.setattr(MultiheadAttention, "forward", lambda *a, **k: seen.append(a[0]) or forward(*a, **k))
    return seen


@pytest.mark.parametrize("settings", [{}, {"batch_first": False}, {"norm_first": True}, {"activation": "gelu"}])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor", "ignore:The PyTorch API of nested tensors")
def test_encoders_of_torch_never_pass_our_attention_by(settings, calls):
    net = encoder(**settings)
    first = net.layers[0].self_attn.batch_first
    x = values(2, 6, E) if first else values(6, 2, E)
    causal = nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64)
    options = [{}, {"src_key_padding_mask": padding()}, {"mask": causal, "is_causal": True}]
    options += [{"mask": causal, "src_key_padding_mask": padding().double() * -1e9}]
    for each in options:
        same(net, x, run=lambda net, x, each=each: net(x, **each))
    same(net.layers[0], x)
    ours = replaced(net).eval()
    calls.clear()
    with torch.no_grad():
        ours(x)
        ours.layers[0](x)
    assert calls == [ours.layers[0].self_attn, ours.layers[1].self_attn, ours.layers[0].self_attn]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_one_substituted_layer_among_torch_s_own(calls):
    net, x = encoder().eval(), values(2, 6, E)
    for which in (0, 1):
        ours = copy.deepcopy(net)
        substitute(ours.layers[which].self_attn, "MultiheadAttention")
        calls.clear()
        with torch.no_grad():
            close(ours(x, src_key_padding_mask=padding()), net(x, src_key_padding_mask=padding()))
        assert calls[0] is ours.layers[which].self_attn


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_bring_their_own_padding():
    net = replaced(attention()).eval()
    rows = [values(6, E), values(4, E, seed=2)]
    x = torch.nested.nested_tensor(rows)
    with torch.no_grad():
        out, _ = net(x, x, x)
        for got, row in zip(out.unbind(), rows, strict=True):
            close(got, net(row, row, row)[0])
        with pytest.raises(ValueError, match="pad them"):
            net(x, x, x, key_padding_mask=padding())


def test_a_whole_transformer_stays_what_it_is():
    net = drawn(nn.Transformer(E, HEADS, 1, 2, 16, dropout=0.0, batch_first=True))
    causal = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    options = {"tgt_mask": causal, "tgt_is_causal": True, "memory_key_padding_mask": hides(2, 6)}
    same(net, values(2, 6, E), values(2, 5, E, seed=2), run=lambda net, *x: net(*x, **options))


def test_an_exported_network_takes_any_batch():
    """With a learned bias on the scores, the exporter's steps see different memory layouts of the same result."""
    runtime = pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="the package onnxscript is not installed")
    net = drawn(RelativePositionalMultiHeadAttention(E, HEAD_DIM, 16)).float().eval()
    batch = ({0: "batch"},)
    program = torch.onnx.export(
        replaced(net), (values(2, 3, 16, E).float(),), dynamo=True, dynamic_shapes=batch, verbose=False
    )
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    for rows in (1, 3):
        x = values(rows, 3, 16, E).float()
        (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(out), net(x).detach(), rtol=1e-4, atol=1e-5)


# What is refused ------------------------------------------------------------------------------------------


class Own(nn.MultiheadAttention):
    pass


@pytest.mark.parametrize(
    "module",
    [
        nn.MultiheadAttention(E, HEADS, add_bias_kv=True),
        nn.MultiheadAttention(E, HEADS, add_zero_attn=True),
        Own(E, HEADS),
        nn.Linear(E, E),
    ],
)
def test_other_modules_are_left_alone(module):
    before = type(module)
    assert substitute_for(module) is None
    with pytest.raises(PlanError, match=f"{before.__name__} there; make the plan again"):
        substitute(module, "MultiheadAttention")
    assert type(module) is before


def test_wrong_names_are_refused():
    net = attention()
    with pytest.raises(
        PlanError, match="'Attention'; there are MultiheadAttention, RelativeAttention, WindowAttention"
    ):
        substitute(net, "Attention")
    with pytest.raises(PlanError, match="'WindowAttention' takes the place of"):
        substitute(net, "WindowAttention")
    substitute(net, "MultiheadAttention")
    with pytest.raises(PlanError, match="make the plan again"):
        substitute(net, "MultiheadAttention")


def test_the_registry_names_its_classes():
    assert all(own.__name__ == name and issubclass(own, Substitute) for name, own in SUBSTITUTES.items())
    assert isinstance(replaced(attention()), nn.MultiheadAttention)
