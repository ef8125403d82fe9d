"""The report's section on how sure the networks are: the calibration error by hand, and no odd count that stops it."""

import html
import re

import pytest

from deploy.report import units
from deploy.report.calibration import render_calibration
from deploy.report.view import Results


def tenth(low, images, right, probability):
    return {"low": low, "high": round(low + 0.1, 1), "images": images, "right": right, "probability": probability}


TEACHER = [tenth(0.9, 60, 57, 0.96), tenth(0.5, 40, 18, 0.55)]
STUDENT = [tenth(0.9, 100, 70, 0.99)]


def shown(teacher, student):
    models = [{"role": "teacher", "test_reliability": teacher}, {"role": "student", "test_reliability": student}]
    return render_calibration(Results({"models": models}, {}, {}))


def text(markup):
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", markup)).replace(units.SPACE, " "))


def test_the_error_is_the_mean_gap_of_probability_and_right_answers():
    page = text(shown(TEACHER, STUDENT))
    # (60 x |0.95 - 0.96| + 40 x |0.45 - 0.55|) / 100, of answers whose probability is (57.6 + 22) / 100.
    assert "teacher 79.6 % 75.0 % 4.6 %" in page
    assert "student 99.0 % 70.0 % 29.0 %" in page
    # The lowest first.
    assert "teacher 50 % to 60 % 40 45.0 % teacher 90 % to 100 % 60 95.0 %" in page


def test_the_drawing_has_a_text_alternative_and_two_shapes():
    page = shown(TEACHER, STUDENT)
    assert 'aria-label="teacher: 75.0' in page and "student: 70.0" in page
    assert page.count("<svg") == 1
    assert "stroke-dasharray" in page, "two lines of one kind are one on black and white paper"


@pytest.mark.parametrize(
    "odd",
    [[{}], [tenth(0.9, 0, 0, 0.9)], [tenth(0.9, 5, 6, 0.9)], [tenth(0.9, 5, 4, 1.2)], [tenth(0.9, "5", 4, 0.9)],
     [tenth(0.9, float("nan"), 4, 0.9)], "text", None, [tenth(-0.1, 5, 4, 0.9)]],
)  # fmt: skip
def test_what_is_no_count_is_left_out(odd):
    page = text(shown(odd, STUDENT))
    assert "student 99.0 %" in page and "teacher" not in page
    assert shown(odd, odd) == ""
