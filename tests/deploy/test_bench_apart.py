"""Engines timed in processes of their own, under names that travel, and held to a baseline from another folder."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from compress.cli.app import app
from deploy.bench.isolate import Place, cold_start, sit_apart
from deploy.bench.places import find_engines, places_of
from deploy.bench.records import Bench
from deploy.bench.transfers import transfers_of
from deploy.bench.warmup import warm_up
from deploy.bundle.bundle import Bundle
from deploy.engines import load_engine
from deploy.engines.base import Engine, TensorSpec
from deploy.errors import DeployError
from deploy.onnx.structure import structure_of

pytestmark = pytest.mark.heavy

ONE = {"image": np.ones((1, 1, 16, 16), np.float32)}


def niwaki(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)


@pytest.mark.parametrize(
    ("said", "named", "names"),
    [
        (["a/student.int8.onnx", "b/teacher.onnx"], [], ["student.int8", "teacher"]),
        (["x/a/m.onnx", "x/b/m.onnx"], [], ["a/m", "b/m"]),
        (["x/a/m.onnx"], ["dense=x/b/m.onnx"], ["dense", "m"]),
        (["runs/digits/bundle"], [], ["bundle"]),
    ],
)
def test_names_are_as_short_as_they_can_be_and_know_no_folder(said, named, names, tmp_path):
    assert [place.name for place in places_of(said, named)] == names


@pytest.mark.parametrize("named", [["dense"], ["=a"], ["a=x.onnx", "a=y.onnx"]])
def test_a_name_that_names_nothing_or_twice_is_a_sentence(named):
    with pytest.raises(DeployError, match="NAME=PATH"):
        places_of([], named)


def test_a_structure_is_blind_to_weights_and_sees_widths(files, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(files["fp32"])
    for tensor in model.graph.initializer:
        if tensor.data_type == 1:
            values = onnx.numpy_helper.to_array(tensor) * 1.5
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, f"w_{tensor.name}"))
            for node in model.graph.node:
                node.input[:] = [tensor.name if f"w_{one}" == tensor.name else one for one in node.input]
    onnx.save(model, tmp_path / "again.onnx")
    assert structure_of(tmp_path / "again.onnx") == structure_of(files["fp32"])
    assert structure_of(files["int8"]) != structure_of(files["fp32"])
    attribute = next(a for node in model.graph.node for a in node.attribute if a.name == "strides")
    attribute.ints[:] = [3, 3]
    onnx.save(model, tmp_path / "other.onnx")
    assert structure_of(tmp_path / "other.onnx") != structure_of(files["fp32"])


class Settling(Engine):
    """Gets faster with each of its first runs; time passes by its own clock alone."""

    name, runtime, precision = "settling", "fake", "fp32"

    def __init__(self, clock, times):
        self.inputs = self.outputs = {"x": TensorSpec("float32", (None,))}
        self.clock, self.times, self.calls = clock, times, 0

    def _run(self, feeds):
        self.clock.now += self.times[min(self.calls, len(self.times) - 1)]
        self.calls += 1
        return dict(feeds)

    def close(self):
        pass


@pytest.mark.parametrize(
    ("times", "least", "seconds"),
    [
        ([1e-3], 20, 1e-3),
        ([0.1 * 0.9**n for n in range(40)] + [1e-3], 40, 1e-3),  # goes on while it gets faster
        ([1e-3] * 19 + [0.5] + [1e-3], 20, 1e-3),  # one hiccup at the end is not what a run takes
    ],
)
def test_the_warm_up_ends_when_times_have_settled(times, least, seconds, monkeypatch):
    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr("deploy.bench.warmup.time", clock)
    engine = Settling(clock, times)
    found = warm_up(engine, {"x": np.ones(1, np.float32)}, 20)
    assert found.steady and found.runs == engine.calls >= least
    assert found.seconds == pytest.approx(seconds)


@pytest.mark.heavy
def test_a_process_of_its_own_times_and_says_what_a_cold_start_costs(files):
    places = [Place("a", files["fp32"]), Place("b", files["int8"])]
    engines, sitting = sit_apart(places, [ONE, ONE], rounds=3, min_seconds=0)
    assert [engine.name for engine in engines] == ["a", "b"]
    assert engines[0].structure == structure_of(files["fp32"])
    assert sitting.times.shape == (2, 3, 5) and (sitting.times > 0).all()
    assert sitting.conditions.cores >= 1
    cold = cold_start(places[0], ONE)
    assert cold.load_ms > 0 and cold.first_ms > 0
    assert cold.peak_rss_bytes is None or 0 < cold.own_rss_bytes < cold.peak_rss_bytes
    with pytest.raises(DeployError, match="There is no ONNX file at"):
        cold_start(Place("c", files["fp32"].with_name("none.onnx")), ONE)


@pytest.mark.heavy
def test_a_record_is_gated_from_another_folder_and_timed_again_where_in_doubt(files, tmp_path, monkeypatch):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        for precision in ("fp32", "int8"):
            shutil.copy(files[precision], tmp_path / folder)
    names = [files[precision].name for precision in ("fp32", "int8")]
    monkeypatch.chdir(tmp_path / "here")
    assert niwaki("bench", *names, "--rounds", 5, "--out", "bench.json").exit_code == 0
    monkeypatch.chdir(tmp_path)
    there = [tmp_path / "there" / name for name in names]
    assert niwaki("bench", "--name", f"base={there[0]}", there[1], "--rounds", 5, "--out", "new.json").exit_code == 0
    record = Bench.from_file("new.json")
    assert [one.name for one in record.records] == ["base", files["int8"].stem]
    wide = ["--latency-tolerance", 9, "--tolerance", "tail=999", "--tolerance", "absolute=99"]
    passed = niwaki("gate", "new.json", "--baseline", "here/bench.json", *wide)
    assert passed.exit_code == 0, passed.stdout
    # A baseline that nothing can live up to: timed again, then failed. Found by content, beside the baseline.
    best = json.loads((tmp_path / "here/bench.json").read_text())
    best["records"][1] |= {"ratio_of_best": 1e-3, "best_interval": [1e-3, 1e-3]}
    (tmp_path / "best.json").write_text(json.dumps(best))
    asked = ["gate", "new.json", "--baseline", "best.json", *wide, "--repeats", 1, "--json"]
    failed = niwaki(*asked, "--engines", tmp_path / "there")
    assert failed.exit_code == 1
    assert json.loads(failed.stdout)["repeats"] == 1
    assert json.loads(niwaki(*asked).stdout)["repeats"] == 0
    assert find_engines(record, [tmp_path]) is None
    assert [place.path for place in find_engines(record, [tmp_path / "there"])] == there


@pytest.mark.heavy
def test_accuracy_is_measured_on_a_folder_of_labelled_images(bundle_dir, tmp_path):
    import deploy

    data = tmp_path / "data"
    rng = np.random.default_rng(0)
    with deploy.load(bundle_dir) as bundle:
        classes = bundle.classes
        for index in range(6):
            image = Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8))
            found = bundle.predict([image])[0]["index"]
            # Four under what the bundle says, two under another class.
            folder = data / classes[found if index < 4 else (found + 1) % len(classes)]
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{index}.png")
    done = niwaki("bench", bundle_dir, "--rounds", 5, "--data", data, "--json")
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert told["records"][0]["accuracy"] == pytest.approx(4 / 6)
    assert told["settings"]["images"] == 6
    assert told["settings"]["fed"] == {bundle_dir.name: "images"}


@pytest.mark.heavy
def test_images_without_labels_are_what_is_timed_and_nothing_else(files, bundle_dir, tmp_path, monkeypatch):
    with pytest.raises(DeployError, match="holds no image"):
        niwaki("bench", bundle_dir, "--rounds", 5, "--data", tmp_path)
    missing = CliRunner().invoke(app, ["bench", str(files["fp32"]), "--data", str(tmp_path / "none")])
    assert missing.exit_code == 2, "what says nothing of images is told of a folder that is not there, too"
    image = Image.new("L", (16, 16), 255)
    image.save(tmp_path / "white.png")
    ran = []
    monkeypatch.setattr(Bundle, "_run", lambda self, feeds: ran.append(feeds) or self._engine._run(feeds))
    plain = files["fp32"]
    done = niwaki("bench", bundle_dir, plain, "--rounds", 5, "--batch", 3, "--data", tmp_path)
    assert done.exit_code == 0
    said = " ".join(done.stdout.split())
    assert f"{plain.stem}: timed on noise, as nothing says how images are prepared." in said
    assert f"{bundle_dir.name}, {plain.stem}: no accuracy" in said
    (name,) = ran[0]
    (fed,) = {values.tobytes() for one in ran for values in one.values()}
    prepared = ran[0][name]
    assert prepared.shape[0] == 3 and len(np.unique(prepared)) == 1, "one white image, three times"
    assert fed == prepared.tobytes()


@pytest.mark.heavy
def test_no_table_cuts_two_names_to_the_same_letters(files, tmp_path):
    long = "a-very-long-name-that-begins-alike-"
    named = [f"{long}{end}={files['fp32' if end == 'one' else 'int8']}" for end in ("one", "two")]
    done = niwaki("bench", "--rounds", 5, *(part for one in named for part in ("--name", one)))
    letters = "".join(line.split("│")[1].strip() for line in done.stdout.splitlines() if "│" in line)
    assert f"{long}one" in letters and f"{long}two" in letters


def test_copies_are_timed_apart_where_there_are_any(files, monkeypatch):
    with load_engine(files["fp32"]) as engine:
        assert transfers_of(engine, {next(iter(engine.inputs)): ONE["image"]}) is None, "on a CPU nothing is copied"
        # The processor stands in for the card: the same calls, on memory of its own.
        apart = engine._apart
        engine.runtime = "onnxruntime_cuda"
        monkeypatch.setattr(engine, "_apart", lambda feeds, device: apart(feeds, {"cuda": "cpu"}[device]))
        found = transfers_of(engine, {next(iter(engine.inputs)): ONE["image"]}, runs=3)
        assert min(found.in_ms, found.network_ms, found.out_ms) >= 0 and found.network_ms > 0
    with pytest.raises(DeployError, match="is closed"):
        engine.run_apart({next(iter(engine.inputs)): ONE["image"]})
