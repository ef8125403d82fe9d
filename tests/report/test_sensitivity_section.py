"""The report's section on sensitivity: what each group lost, read off its curve, and no odd value that stops it."""

import copy
import re

import pytest

from deploy.report import sensitivity
from deploy.report.drawing import THEME
from deploy.report.sensitivity import SensitivityCurve, curves_file, read_curves, render_sensitivity


def cell(ratio, accuracy, loss):
    return {"ratio": ratio, "accuracy": accuracy, "loss": loss}


PLAN = {
    "groups": [
        {"name": "stem", "before": 8, "after": 6},
        {"name": "layer1.<0>", "before": 16, "after": 4},
        {"name": "whole", "before": 16, "after": 16},
    ],
    "sensitivity": {
        "loss": 0.2,
        "accuracy": 0.9,
        "images": 1234,
        "metric": "accuracy",
        "criterion": "fisher",
        "curves": [
            {"group": "stem", "channels": 8, "cells": [cell(0.5, 0.5, 1.2)]},
            {"group": "layer1.<0>", "channels": 16, "cells": [cell(0.25, 0.88, 0.3), cell(0.75, 0.6, 0.9)]},
            {"group": "whole", "channels": 16, "cells": [cell(0.5, 0.9, 0.2)]},
        ],
        "correlations": {"fisher": 0.81, "l1": -0.25, "thinet": None},
    },
}


@pytest.fixture(scope="module")
def page():
    return render_sensitivity(PLAN)


def test_what_each_group_lost_is_read_off_its_curve(page):
    lines = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', page)
    lost = [(name, re.sub(r"<.*?>", " ", cells).split()) for name, cells in lines[:2]]
    # A quarter of the stem: half of the way to 0.5; three quarters of the other: as measured. The dearest first.
    assert lost[0][0] == "layer1.&lt;0&gt;"
    assert lost[0][1][:4] == ["16", "→", "4", "75"]
    assert lost[0][1][-2] == "−30.0"
    assert lost[1][0] == "stem"
    assert lost[1][1][-2] == "−20.0"
    assert not any(name == "whole" for name, _ in lines)
    assert "by fisher" in page
    assert "on 1,234 images" in page


def test_criteria_are_listed_by_what_they_foresaw(page):
    assert re.findall(r'<th scope="row">(fisher|l1)</th><td class="l">(.*?)</td>', page) == [
        ("fisher", "+0.81"), ("l1", "−0.25"),
    ]  # fmt: skip
    assert "Not available for this network: thinet." in page


def test_both_drawings_have_each_curve(page):
    assert page.count("<svg") == 2
    assert not any(placeholder in page for placeholder in THEME)
    assert page.count("layer1.&lt;0&gt;") >= 3  # in the legends and in the table


def test_without_labels_the_loss_is_drawn():
    measured = {**PLAN["sensitivity"], "accuracy": None}
    found, name = read_curves(measured)
    assert name == "loss"
    assert found[0] == SensitivityCurve("stem", (0.0, 0.5), (0.2, 1.2))
    page = render_sensitivity({**PLAN, "sensitivity": measured})
    # Half of the way from 0.2 to 1.2.
    assert "0.500" in page
    assert "loss, this alone" in page


def test_a_file_of_its_own_has_colours_of_its_own():
    drawing = curves_file(PLAN["sensitivity"])
    assert drawing.count("<svg") == 1
    assert "var(--" not in drawing
    assert not any(placeholder in drawing for placeholder in THEME)


def test_nothing_measured_shows_nothing():
    assert render_sensitivity({}) == ""
    assert render_sensitivity({"sensitivity": {"curves": []}}) == ""


@pytest.mark.parametrize("odd", [None, -1, "x", [], {}, 1e300, float("nan"), True])
def test_no_odd_value_stops_the_page(odd, monkeypatch):
    monkeypatch.setattr(sensitivity, "_drawn", lambda *found, **how: "<svg></svg>")

    def places(value, path=()):
        yield path
        if isinstance(value, dict | list):
            for key in value if isinstance(value, dict) else range(len(value)):
                yield from places(value[key], (*path, key))

    for path in list(places(PLAN))[1:]:
        changed = copy.deepcopy(PLAN)
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = odd
        assert isinstance(render_sensitivity(changed), str)
