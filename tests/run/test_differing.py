"""What the test notes of student and teacher: the same evaluation, a fixed order, small pictures without a past."""

import hashlib
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from compress.data.files import FileImages
from compress.data.images import ImageData, ImageReader, Split
from compress.run.differing import TopAnswers, by_class, note_differing
from compress.run.ledger import Ledger, Outcome
from compress.run.reliability import reliability
from compress.train import evaluate, make_fabric
from deploy.processing.preprocess import Preprocessing, load

CLASSES = ("cat", "dog", "owl")
PREPARED = Preprocessing(size=(4, 4), mode="RGB", mean=(0.0,) * 3, std=(1.0,) * 3, resize="stretch")


@pytest.fixture
def work(tmp_path):
    """A run over twelve photographs, of which the red level is the number."""
    root = tmp_path / "photos"
    paths, labels = [], []
    for index in range(12):
        path = root / "test" / CLASSES[index % 3] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x010F] = "somebody's camera"
        Image.new("RGB", (200, 50), (index, 0, 0)).save(path, exif=exif)
        paths.append(path)
        labels.append(index % 3)
    reader = ImageReader(load=load, prepare=PREPARED)
    data = ImageData(CLASSES, {"test": Split(FileImages(paths, reader), torch.tensor(labels), reader)})
    recipe = SimpleNamespace(preprocessing=PREPARED, target=SimpleNamespace(path=str(root)))
    (tmp_path / "out").mkdir()
    return SimpleNamespace(target=data, recipe=recipe, out=tmp_path / "out")


class Table(nn.Module):
    """Answers image k by row k of a table of probabilities; counts how often each was asked for."""

    def __init__(self, rows):
        super().__init__()
        self.rows, self.asked = torch.tensor(rows), torch.zeros(12)

    def forward(self, images):
        index = (images[:, 0, 0, 0] * 255).round().long()
        self.asked[index] += 1
        return self.rows[index].log()


RIGHT = [[0.8 if k == i % 3 else 0.1 for k in range(3)] for i in range(12)]


def answered(work, rows, asked=None):
    network, answers = Table(rows), TopAnswers(asked)
    found = evaluate(network, work.target, "test", make_fabric("cpu", "32-true"), seen=answers.add)
    assert network.asked.tolist() == [1.0] * 12, "each image is read once, metrics and answers together"
    assert str(found) == str(evaluate(network, work.target, "test", make_fabric("cpu", "32-true")))
    return answers


def differing(work, changes):
    teacher = answered(work, RIGHT)
    return note_differing(
        work, teacher, answered(work, [changes.get(i, row) for i, row in enumerate(RIGHT)], teacher.classes)
    )


def test_those_that_differ_most_come_first_and_equals_in_the_order_of_the_split(work):
    changes = {
        10: [0.5, 0.4, 0.1],  # the teacher's dog at 0.4
        7: [0.9, 0.05, 0.05],  # at 0.05
        3: [0.3, 0.6, 0.1],  # its cat at 0.3
        4: [0.6, 0.3, 0.1],  # its dog at 0.3
        0: [0.6, 0.3, 0.1],  # the same answer, less sure
    }
    found = differing(work, changes)
    assert (found.total, [one.index for one in found.images]) == (4, [7, 3, 4, 10])
    first = found.images[0]
    assert (first.file, first.label, first.teacher, first.student) == ("test/dog/7.png", "dog", "dog", "cat")
    assert (first.teacher_probability, first.student_probability) == (pytest.approx(0.8), pytest.approx(0.9))
    assert found == differing(work, changes)


def test_eight_have_a_picture_and_those_of_an_earlier_test_are_gone(work):
    wrong = {i: [row[2], row[0], row[1]] for i, row in enumerate(RIGHT)}
    found = differing(work, wrong)
    assert (found.total, len(found.images)) == (12, 8)
    for place, one in enumerate(found.images):
        file = work.out / f"differing/{place}.png"
        assert hashlib.sha256(file.read_bytes()).hexdigest() == one.picture
        with Image.open(file) as image:
            assert image.size == (96, 24) and image.getpixel((5, 5))[0] == one.index
            assert not image.getexif() and b"camera" not in file.read_bytes()
    assert len(differing(work, {5: wrong[5]}).images) == len(list((work.out / "differing").iterdir())) == 1
    assert differing(work, {}).total == 0 and not (work.out / "differing").exists()


def test_what_is_no_probability_is_counted_and_not_shown(work):
    found = differing(work, {1: [float("nan")] * 3, 2: [0.6, 0.3, 0.1]})
    assert (found.total, [one.index for one in found.images]) == (2, [2])


def test_a_name_that_is_no_unicode_can_be_written(work, tmp_path):
    paths = work.target.splits["test"].images.paths
    assert work.target.splits["test"].images[2] is not None  # decoded once, it stays in memory
    paths[2] = paths[2].with_name("caf\udce9.png")
    found = differing(work, {2: [0.6, 0.3, 0.1]})
    assert found.images[0].file == "test/owl/caf\\udce9.png"
    ledger = Ledger(name="a", seed=0, created="", kernels="").with_stage("test", "", 0, Outcome(differing=found))
    ledger.write(tmp_path / "ledger.json")
    assert Ledger.read(tmp_path / "ledger.json").differing == found


def test_each_class_has_its_accuracy(work):
    answers = answered(work, [RIGHT[1] if i in (0, 3, 6) else row for i, row in enumerate(RIGHT)])
    split = work.target.splits["test"]
    assert by_class(answers.classes, split, CLASSES) == {"accuracy_cat": 0.25, "accuracy_dog": 1.0, "accuracy_owl": 1.0}
    assert set(by_class(answers.classes, split, (*CLASSES, "never"))) == {f"accuracy_{name}" for name in CLASSES}


def test_reliability_counts_answers_by_their_probability(work):
    rows = [list(row) for row in RIGHT]  # nine right at 0.8
    rows[0] = [0.04, 0.92, 0.04]  # a cat taken for a dog at 0.92
    rows[1] = [0.05, 0.95, 0.0]  # a dog at 0.95
    rows[2] = [0.42, 0.34, 0.24]  # an owl taken for a cat at 0.42
    bins = reliability(answered(work, rows), work.target.splits["test"].labels)
    assert [(one.low, one.high, one.images, one.right) for one in bins] == [
        (0.4, 0.5, 1, 0), (0.8, 0.9, 9, 9), (0.9, 1.0, 2, 1)
    ]  # fmt: skip
    assert [one.probability for one in bins] == pytest.approx([0.42, 0.8, 0.935])
    sure = TopAnswers()
    sure.add(torch.tensor([[0.0, 1e4], [float("nan"), 0.0]]), SimpleNamespace())
    assert [(one.images, one.right, one.probability) for one in reliability(sure, torch.tensor([1, 0]))] == [(1, 1, 1)]
