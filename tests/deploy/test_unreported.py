"""What runs a network tells nobody that it did: no identifier is left in the home folder, nothing is there to send."""

import os
import subprocess
import sys

import numpy as np
import pytest

from deploy.engines.unreported import unreported

pytestmark = pytest.mark.heavy

# Where a machine of a continuous integration is noticed, the runtimes are silent by themselves.
NOTICED = {"CI", "TF_BUILD", "GITHUB_ACTIONS", "JENKINS_URL", "GITLAB_CI", "PYTEST_CURRENT_TEST", "PYTEST_VERSION"}
SCRIPTS = {
    "onnxruntime": "deploy.load_engine(sys.argv[1], runtime='onnxruntime')",
    "openvino": "deploy.load_engine(sys.argv[1], runtime='openvino')",
    "nncf": "deploy.quantize(sys.argv[1], sys.argv[2], np.load(sys.argv[3]))",
    "probe": "probe(sys.argv[1], runtime='onnxruntime'); probe(sys.argv[1], runtime='openvino')",
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_nothing_is_left_in_the_home_folder(script, files, images, tmp_path):
    home, noise = tmp_path / "home", tmp_path / "images.npy"
    home.mkdir()
    np.save(noise, images)
    code = f"import sys; import numpy as np; import deploy; from deploy.engines.probing import probe; {script}"
    plain = {name: value for name, value in os.environ.items() if name not in NOTICED and "TELEMETRY" not in name}
    given = {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
    command = [sys.executable, "-c", code, files["fp32"], tmp_path / "m.int8.onnx", noise]
    subprocess.run(command, env=plain | given, check=True, capture_output=True, timeout=240)
    left = [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]
    assert [name for name in left if "Microsoft" in name or name.startswith("intel")] == []


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    monkeypatch.delenv("NNCF_CI", raising=False)
    before = sys.modules.get("openvino_telemetry", "none")
    with unreported():
        assert (os.environ["ORT_DISABLE_TELEMETRY"], os.environ["NNCF_CI"]) == ("0", "1")
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"
    assert "NNCF_CI" not in os.environ
    assert sys.modules.get("openvino_telemetry", "none") is before
