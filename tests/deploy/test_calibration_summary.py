"""What a bundle says about its calibration, its weights and their licence."""

import hashlib
import json

import numpy as np
import pytest
from pydantic import ValidationError

import deploy
from deploy.bundle.calibration_summary import Calibration, activation_ranges
from deploy.bundle.manifest import MANIFEST, Weights
from deploy.bundle.writing import BundleSpec, write_bundle
from deploy.errors import DeployError


def test_the_summary_is_of_the_bytes_in_their_order(images, files):
    said = Calibration.of(list(images), 7, files["int8"])
    assert (said.count, said.seed) == (32, 7)
    assert said.sha256 == hashlib.sha256(images.astype("<f4").tobytes()).hexdigest()
    assert Calibration.of(iter(images[::-1]), 7).sha256 != said.sha256
    # However the memory is laid out, the numbers count.
    assert Calibration.of([np.asfortranarray(image) for image in images], 7).sha256 == said.sha256
    with pytest.raises(ValidationError):
        Calibration.of([], 0)


def test_the_ranges_are_those_of_the_file(files, images):
    ranges = activation_ranges(files["int8"])
    low, high = ranges["image"]
    # NNCF takes the mean, over images, of the largest absolute value.
    assert max(-low, high) == pytest.approx(np.abs(images).max((1, 2, 3)).mean(), rel=0.02)
    assert low < 0 < high
    assert len(ranges) >= 5
    assert activation_ranges(files["fp32"]) == {}
    signed = activation_ranges(files["signed"])
    assert set(signed) == set(ranges)
    with pytest.raises(DeployError, match="There is no ONNX file"):
        activation_ranges(files["int8"].with_name("none.onnx"))


def test_a_bundle_says_where_it_comes_from(tmp_path, files, images, preprocessing):
    digest = "ab" * 32
    folder = write_bundle(
        tmp_path / "b",
        BundleSpec(
            models={"int8": files["int8"]},
            tensorrt={"int8": files["signed"]},
            default="int8",
            cpu_runtime="openvino",
            preprocessing=preprocessing,
            classes=tuple("abcde"),
            calibration=Calibration.of(list(images), 0, files["int8"]),
            licence="BSD-3-Clause",
            weights=Weights(source="resnet18.pth", sha256=digest),
        ),
    )
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, "model.int8.onnx", "model.int8.trt.onnx"]
    said = json.loads((folder / MANIFEST).read_text())
    assert said["weights"] == {"source": "resnet18.pth", "sha256": digest}
    assert (said["licence"], said["cpu_runtime"], said["calibration"]["count"]) == ("BSD-3-Clause", "openvino", 32)
    with deploy.load(folder) as bundle:
        assert bundle.manifest.calibration.ranges == activation_ranges(files["int8"])
        assert bundle.runtime == "openvino" or "the package openvino cannot be imported" in bundle.why
    (folder / "model.int8.trt.onnx").write_bytes(b"")
    with pytest.raises(DeployError, match=r"model\.int8\.trt\.onnx has 0 bytes"):
        deploy.load(folder)


def test_a_file_for_tensorrt_needs_its_model(tmp_path, files, preprocessing):
    with pytest.raises(DeployError, match=r"tensorrt has \['int8'\], of which not all are among the models"):
        write_bundle(
            tmp_path / "b",
            BundleSpec(
                models={"fp32": files["fp32"]},
                tensorrt={"int8": files["signed"]},
                default="fp32",
                preprocessing=preprocessing,
                classes=tuple("abcde"),
            ),
        )
