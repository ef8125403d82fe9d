"""The wheel, a bundle, the C++ preprocessing and the kernels' loops as aarch64 under qemu: what x86-64 answers.

``benchmarks/aarch64.sh WORK`` makes what they need; ``NIWAKI_AARCH64`` names that folder.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deploy
from deploy.processing.preprocess import Preprocessing

WORK = Path(os.environ.get("NIWAKI_AARCH64", "/nowhere"))
ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.aarch64,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (WORK / "python").is_file(), reason="NIWAKI_AARCH64 names no folder of benchmarks/aarch64.sh"
    ),
]
TOLERANCE = {"fp32": 1e-5, "int8": 0.02}
"""Of a probability: int8 kernels of the two processors round sums differently."""


def run(*command):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, cwd=WORK, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_number_15_the_wheel_runs_as_aarch64_without_torch():
    code = (
        "import platform, deploy, importlib.util as u; print(platform.machine(), u.find_spec('torch'), deploy.__file__)"
    )
    machine, torch, file = run(WORK / "python", "-c", code).split()
    assert (machine, torch) == ("aarch64", "None") and "site/deploy" in file


@pytest.mark.parametrize("precision", TOLERANCE)
def test_number_15_a_bundle_answers_alike_on_both_processors(precision, bundle_dir, picture):
    main = "from compress.cli.app import main; main()"
    asked = ("predict", bundle_dir, picture, "--precision", precision, "--runtime", "onnxruntime", "--json")
    (there,) = json.loads(run(WORK / "python", "-c", main, *asked))
    with deploy.load(bundle_dir, precision=precision, runtime="onnxruntime") as bundle:
        (here,) = bundle.predict([picture])
    assert there["class"] == here["class"]
    for one, other in zip(sorted(there["top"], key=str), sorted(here["top"], key=str), strict=True):
        assert one["class"] == other["class"]
        assert one["probability"] == pytest.approx(other["probability"], abs=TOLERANCE[precision])


def compiled(folder, name, *arguments):
    """Compile for both processors; return what to run, here and there."""
    built = []
    for compiler, words in (("g++", ()), (WORK / "g++", (WORK / "tools/usr/bin/qemu-aarch64-static",))):
        program = folder / f"{name}{len(built)}"
        run(compiler, "-O2", "-std=c++20", "-ffp-contract=off", "-static", *arguments, "-o", program)
        built.append([*words, program])
    return built


def test_number_15_cpp_prepares_the_same_bits_on_both(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (37, 53, 4), dtype=np.uint8)
    head = b"P7\nWIDTH 53\nHEIGHT 37\nDEPTH 4\nMAXVAL 255\nENDHDR\n"
    (tmp_path / "image.pam").write_bytes(head + pixels.tobytes())
    prepare = Preprocessing(size=(24, 40), interpolation="lanczos", resize="letterbox", background=(9, 90, 200))
    (tmp_path / "manifest.json").write_text(json.dumps({"preprocessing": json.loads(prepare.model_dump_json())}))
    want = prepare(Image.fromarray(pixels))
    for program in compiled(tmp_path, "prepare", ROOT / "examples/cpp/prepare.cpp"):
        run(*program, tmp_path / "manifest.json", tmp_path / "out.f32", tmp_path / "image.pam")
        np.testing.assert_array_equal(np.fromfile(tmp_path / "out.f32", np.float32).reshape(prepare.shape), want)


DRIVER = """
#include <cstdio>
#include <vector>
#include "loops.h"
int main(int, char** names) {
  using namespace niwaki;
  std::vector<float> x(64 * 48 * 9);
  std::FILE* file = std::fopen(names[1], "rb");
  if (std::fread(x.data(), 4, x.size(), file) != x.size()) return 1;
  std::printf("%s\\n", kLoopsPlain.name);
  for (int kind = 0; kind < 3; ++kind) {
    std::vector<double> rows(64), columns(48 * 9 + kColumnRoom);
    kLoopsPlain.reduce[int(Element::f32)][kind](x.data(), 64, 1, 48 * 9, rows.data(), columns.data());
    for (double value : rows) std::printf("%a ", value);
    for (int k = 0; k < 48 * 9; ++k) std::printf("%a ", columns[k]);
  }
}
"""


def test_number_15_the_neon_loops_add_to_the_same_bits(tmp_path):
    x = np.random.default_rng(1).standard_normal((64, 48 * 9)).astype(np.float32)
    x.tofile(tmp_path / "x.f32")
    (tmp_path / "driver.cpp").write_text(DRIVER)
    (tmp_path / "other.cpp").write_text(
        '#include "loops.h"\nnamespace niwaki { const Loops kLoopsAvx2{}, kLoopsAvx512{}; }\n'
    )
    source = ROOT / "cpp_ext/csrc/cpu"
    sources = (f"-I{source}", f"-I{source.parent}", tmp_path / "driver.cpp", tmp_path / "other.cpp")
    here, there = (
        run(*program, tmp_path / "x.f32")
        for program in compiled(tmp_path, "loops", *sources, source / "loops_plain.cpp")
    )
    assert here == there
    values = np.array([float.fromhex(word) for word in here.split()[1:]]).reshape(3, -1)
    exact = x.astype(np.float64)
    wanted = ((np.add, np.abs(exact)), (np.add, exact**2), (np.maximum, np.abs(exact)))
    for found, (combine, cells) in zip(values, wanted, strict=True):
        want = np.concatenate([combine.reduce(cells, axis=1), combine.reduce(cells, axis=0)])
        np.testing.assert_allclose(found, want, rtol=1e-6)
