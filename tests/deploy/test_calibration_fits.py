"""A calibration that does not fit the network is seen: int8 is held against fp32 before it is written."""

import numpy as np
import pytest

from deploy.engines import load_engine
from deploy.errors import DeployError
from deploy.exporting.torch_to_onnx import export_onnx
from deploy.onnx.metadata import Metadata
from deploy.processing.preprocess import Preprocessing
from deploy.quantization.agreement import Agreement
from deploy.quantization.half import fp16_from_fp32
from deploy.quantization.int8 import int8_from_fp32, int8_with_accuracy_control
from deploy.quantization.lint import lint_qdq

pytestmark = pytest.mark.heavy

onnx = pytest.importorskip("onnx")
pytest.importorskip("nncf")


def test_the_file_states_how_close_it_is(files, images, tmp_path):
    stated = Agreement.read(files["int8"])
    assert stated == Agreement.of(files["fp32"], files["int8"], [image[None] for image in images])
    assert stated.agreement > 0.8 and stated.snr_db > 15
    assert Agreement.read(files["fp32"]) is None


def test_pixels_where_normalised_images_belong_are_refused(files, images, tmp_path):
    # Of nine bits: of eight, the gap is 9.7 dB on processors without VNNI, where sums of int8 products saturate.
    pixels = [((image + 3) * 84).clip(0, 511) for image in images]
    with pytest.raises(DeployError, match=r"dB on its calibration and at .* dB on held-out images; prepare both alike"):
        int8_from_fp32(files["fp32"], tmp_path / "x.onnx", pixels, held_out=list(images), min_snr_db=0.0)
    assert list(tmp_path.iterdir()) == []
    told = int8_from_fp32(files["fp32"], tmp_path / "x.onnx", pixels, held_out=list(images), min_snr_db=None)
    assert Agreement.read(told).snr_db < 20
    assert any("dB against fp32" in finding.what for finding in lint_qdq(told))
    with pytest.raises(DeployError, match=r"agrees with fp32 on \d+ % of the calibration's images at .* dB, below 99"):
        int8_from_fp32(files["fp32"], tmp_path / "y.onnx", list(images), min_snr_db=99)
    assert not (tmp_path / "y.onnx").exists()


def test_number_4_a_file_under_accuracy_control_states_and_is_held_to_its_agreement(files, images, tmp_path):
    def control(name, **options):
        measured = int8_with_accuracy_control(
            files["fp32"], tmp_path / name, list(images), lambda engine: 1.0, max_drop=0.5, **options
        )
        return Agreement.read(measured)

    stated = control("x.onnx", held_out=list(images[:4]))
    assert stated is not None and stated.snr_db > 15 and stated.agreement > 0.8
    with pytest.raises(DeployError, match=r"of the calibration's images at .* dB, below 99"):
        control("y.onnx", min_snr_db=99)


@pytest.mark.parametrize("make", [int8_from_fp32, fp16_from_fp32])
def test_a_range_that_the_stated_preprocessing_cannot_give_is_refused(make, files, images, tmp_path):
    model = onnx.load(files["fp32"])
    about = Metadata(preprocessing=Preprocessing(size=(16, 16), mode="L", mean=(0.5,), std=(0.25,)))
    onnx.helper.set_model_props(model, about.properties())
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(
        DeployError, match=r"between 0 and 255, but .*m\.onnx states a preprocessing that gives -2 to 2"
    ):
        make(tmp_path / "m.onnx", tmp_path / "x.onnx", [np.linspace(0, 255, 256, dtype=np.float32).reshape(1, 16, 16)])
    make(tmp_path / "m.onnx", tmp_path / "x.onnx", [image.clip(-2, 2) for image in images])


@pytest.mark.parametrize("colours", [(0.0,), (0.3, -1.0, 1.0)])
def test_number_4_images_of_one_colour_each_calibrate_nothing(colours, files, tmp_path):
    plain = [np.full((1, 16, 16), colour, np.float32) for colour in colours * 4]
    with pytest.raises(DeployError, match=rf"Every image of the calibration of .* \({len(plain)}\) is of one colour"):
        int8_from_fp32(files["fp32"], tmp_path / "x.onnx", plain)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [1, 3])
def test_number_4_a_few_images_calibrate_nothing_unless_others_are_held_out(count, files, images, tmp_path):
    few, path = list(images[:count]), tmp_path / "x.onnx"
    with pytest.raises(DeployError, match=rf"holds {count} image\(s\), whose ranges say nothing of others; give 4 or"):
        int8_from_fp32(files["fp32"], path, few)
    assert list(tmp_path.iterdir()) == []
    told = Agreement.read(int8_from_fp32(files["fp32"], path, few, held_out=list(images[4:12])))
    assert told is not None and 3 < told.snr_db < 60
    assert int8_from_fp32(files["fp32"], path, few, min_snr_db=None).is_file()


def test_number_4_pixels_of_0_to_255_are_refused_where_nothing_says_that_they_fit(files, images, tmp_path):
    pixels, path = [((image + 3) * 42).clip(0, 255) for image in images], tmp_path / "x.onnx"
    with pytest.raises(DeployError, match=r"between 0 and 2\d\d, as pixels do that nothing scaled, .*held_out images"):
        int8_from_fp32(files["fp32"], path, pixels)
    assert list(tmp_path.iterdir()) == []
    assert int8_from_fp32(files["fp32"], path, pixels, held_out=pixels[:4]).is_file()
    # A network that scales what it reads says so by its first operator.
    model = onnx.load(files["fp32"])
    name = model.graph.input[0].name
    for node in model.graph.node:
        node.input[:] = ["scaled" if one == name else one for one in node.input]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(42), "by"))
    model.graph.node.insert(0, onnx.helper.make_node("Div", [name, "by"], ["scaled"], name="scaling"))
    onnx.save(model, tmp_path / "scaling.onnx")
    assert int8_from_fp32(tmp_path / "scaling.onnx", path, pixels).is_file()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_what_a_small_number_guards_is_not_rounded_to_steps(runtime, tmp_path):
    torch = pytest.importorskip("torch")

    class Normed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.head = torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.Linear(4, 4)

        def forward(self, x):
            seen = self.before(x)
            return self.head((seen / (seen.square().mean(1, keepdim=True) + 1e-8).sqrt()).mean((2, 3)))

    torch.manual_seed(0)
    model, images = Normed().eval(), torch.randn(12, 3, 8, 8)
    fp32 = export_onnx(model, images[:2], tmp_path / "m.onnx")
    int8 = int8_from_fp32(fp32, tmp_path / "i.onnx", list(images.numpy()))
    assert Agreement.read(int8).snr_db > 20
    with load_engine(int8, runtime=runtime) as engine, torch.no_grad():
        for scale in (0.0, 0.1):
            found = engine.run({"image": (images[:4] * scale).numpy()})["logits"]
            np.testing.assert_allclose(found, model(images[:4] * scale).numpy(), atol=0.1)
