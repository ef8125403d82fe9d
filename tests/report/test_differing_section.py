"""The images on which student and teacher differ: pictures in the page itself, or a sentence that they are gone."""

import base64
import hashlib
import html
import io
import json
import re
import shutil

import pytest
from PIL import Image

from deploy.report import compare, units, write_report
from deploy.report.differing import read_pictures, render_differing, render_differing_of_runs
from deploy.report.view import Results


def noted(picture="", **more):
    return {
        "index": 4,
        "file": "test/cat/<b>.jpg",
        "label": "cat",
        "teacher": "cat",
        "teacher_probability": 0.913,
        "student": '"><img src=x>',
        "student_probability": 0.6,
        "picture": picture,
        **more,
    }


def ledger_of(*images, total=None):
    total = len(images) if total is None else total
    return {"test_images": 50, "differing": {"total": total, "images": list(images)}}


@pytest.fixture
def run(tmp_path):
    """A folder with pictures of 96 x 32 and 8 x 8 pixels, and the ledger that belongs to them."""
    (tmp_path / "differing").mkdir()
    for place, image in enumerate((Image.new("RGB", (96, 32), (200, 30, 30)), Image.new("L", (8, 8), 90))):
        image.save(tmp_path / f"differing/{place}.png")
    hashes = [hashlib.sha256((tmp_path / f"differing/{k}.png").read_bytes()).hexdigest() for k in (0, 1)]
    return tmp_path, ledger_of(*map(noted, hashes))


def shown(ledger, pictures=None):
    return render_differing(Results(ledger, {}, {}, pictures or {}))


def text(markup):
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", markup)).replace(units.SPACE, " "))


def test_the_pictures_are_small_jpegs_in_the_page(run):
    found = read_pictures(*run)
    sizes = []
    for uri in found.values():
        kind, _, data = uri.partition(",")
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert (kind, image.format) == ("data:image/jpeg;base64", "JPEG")
        sizes.append(image.size)
    assert sizes == [(96, 32), (96, 96)]
    page = shown(run[1], found)
    assert page.count('<img src="data:image/jpeg;base64,') == 2
    assert "cannot be read" not in page


def test_each_has_its_answers_and_a_text_alternative(run):
    page = shown(run[1], read_pictures(*run))
    alternative = html.unescape(re.search(r'alt="([^"]*)"', page)[1]).replace(units.SPACE, " ")
    assert alternative == 'test/cat/<b>.jpg: cat; teacher says cat at 91.3 %, student says "><img src=x> at 60.0 %'
    assert 'true class: cat teacher: cat ✓ 91.3 % student: "><img src=x> ✗ 60.0 % test/cat/<b>.jpg' in text(page)
    assert "<img src=x>" not in page and "<b>.jpg" not in page
    assert "test image 4" in shown(ledger_of(noted(file=None)))


@pytest.mark.parametrize("spoil", ["gone", "another", "damaged", "large", "link"])
def test_a_picture_that_cannot_be_read_is_said(run, spoil):
    folder, ledger = run
    file = folder / "differing/1.png"
    if spoil == "gone":
        file.unlink()
    elif spoil == "another":
        Image.new("L", (8, 8), 91).save(file)
    elif spoil == "damaged":
        file.write_bytes(file.read_bytes()[:40])
        ledger["differing"]["images"][1]["picture"] = hashlib.sha256(file.read_bytes()).hexdigest()
    elif spoil == "large":
        file.write_bytes(file.read_bytes() + bytes(1 << 18))
        ledger["differing"]["images"][1]["picture"] = hashlib.sha256(file.read_bytes()).hexdigest()
    else:
        file.rename(folder / "secret.png")
        file.symlink_to(folder / "secret.png")
    found = read_pictures(folder, ledger)
    assert list(found) == [0]
    assert "The picture of 1 of them cannot be read from the run's folder differing/" in text(shown(ledger, found))


def test_no_more_than_eight_are_shown_and_all_are_counted():
    page = text(shown(ledger_of(*[noted() for _ in range(20)], total=31)))
    assert "They answer 31 of the 50 test images differently" in page
    assert page.count("true class") == 8


def test_a_run_without_differences_says_so_and_one_that_noted_none_says_nothing():
    assert "They give the same answer to all of the 50 test images." in text(shown(ledger_of()))
    assert shown({"test_images": 50}) == shown({"test_images": 50, "differing": {"total": -1}}) == ""


def test_the_whole_page_allows_these_pictures_and_nothing_else(run):
    folder, ledger = run
    (folder / "ledger.json").write_text(
        json.dumps(ledger | {"format": "niwaki-ledger-1", "stages": [{"name": "test"}]})
    )
    (folder / "recipe.yaml").write_text("")
    page = write_report(folder).read_text("utf-8")
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:\"" in page
    assert re.findall(r'src="([^,"]*)', page) == ["data:image/jpeg;base64"] * 2
    assert len(page) < 100_000


def test_runs_side_by_side_show_the_first_images_of_each(run, tmp_path):
    folder, ledger = run
    images = ledger["differing"]["images"]
    ledger["differing"] = {"total": 9, "images": images * 4}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copytree(folder / "differing", tmp_path / name / "differing")
        told = ledger | {"format": "niwaki-ledger-1", "stages": [{"name": "test"}]}
        (tmp_path / name / "ledger.json").write_text(json.dumps(told))
        (tmp_path / name / "recipe.yaml").write_text("")
    shutil.rmtree(tmp_path / "two/differing")
    page = compare([tmp_path / "one", tmp_path / "two"], "html")
    assert page.count('<img src="data:image/jpeg;base64,') == 2, "places 2 and 3 hold no picture"
    assert page.count("true class") == 8, "four of each run"
    assert "<h3>one</h3>" in page and "<h3>two</h3>" in page
    assert "The pictures of 4 of them cannot be read" in text(page)
    many = render_differing_of_runs([(str(i), Results(ledger, {}, {})) for i in range(300)])
    assert many.count("true class") == 120
    assert render_differing_of_runs([("none", Results({}, {}, {}))]) == ""
