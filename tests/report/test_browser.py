"""The report in a real browser: nothing overflows on a phone, a desktop and in dark mode, and nothing is logged."""

import hashlib
import importlib.util
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from deploy.report import compare, write_report


def beside(name):
    spec = importlib.util.spec_from_file_location(f"niwaki_report_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


chromium, sample = beside("browser"), beside("sample")
pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(chromium.program() is None, reason="Chromium is not installed: apt install chromium"),
]

# What sticks out of its own frame, beside what may be scrolled.
OUTSIDE = """[...document.querySelectorAll('main *')].filter(e => !e.closest('svg, .scroll, pre') &&
  e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + '.' + e.className)"""
CUT_OFF = """['.main', '.goals', '.built', '.parity', '.tight'].map(one => document.querySelector(one).parentElement)
  .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.firstChild.className)"""
OVERLAPS = """(() => { const boxes = [...document.querySelectorAll('.plot')].filter(e => e.offsetParent)
  .flatMap(e => [...e.querySelectorAll('svg text')]).filter(t => t.textContent.trim())
  .map(t => [t.textContent, t.getBoundingClientRect()]);
  const meet = (p, q) => Math.min(p.right, q.right) - Math.max(p.left, q.left) > 2 &&
    Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 4;
  return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([, q]) => meet(p, q)).map(([b]) => a + b)) })()"""
SPOKEN = """[...document.querySelectorAll('.plot')].filter(e => e.offsetParent)
  .map(e => e.getAttribute('role') + ' ' + !!e.getAttribute('aria-label') + ' ' + e.closest('[aria-hidden]'))"""
# What is drawn by its background alone, which paper leaves out unless it is told not to.
FADES = """[...document.querySelectorAll('main *')].filter(e => e.offsetParent && !e.textContent.trim() &&
  !e.closest('svg') && e.clientWidth && getComputedStyle(e).printColorAdjust != 'exact' &&
  getComputedStyle(e).backgroundColor != 'rgba(0, 0, 0, 0)' && getComputedStyle(e).borderTopWidth == '0px')
  .map(e => e.parentElement.className + ' ' + e.tagName)"""
# How wide a bar can become that shows a group's channels, and what crosses the words of a plot.
ROOM = "Math.min(...[...document.querySelectorAll('.group .bar')].map(e => e.clientWidth))"
HALO = "getComputedStyle(document.querySelector('.plot svg text')).paintOrder"
PAPER = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    ledger = sample.ledger()
    (image,) = ledger["differing"]["images"]
    (folder / "differing").mkdir()
    files = [folder / f"differing/{place}.png" for place in range(7)]
    for place, file in enumerate(files):
        Image.effect_noise(((96, 40), (8, 8))[place % 2], 90).save(file)
    pictures = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    ledger["differing"]["images"] = [image | {"picture": one} for one in (*pictures, "of none")]
    (folder / "ledger.json").write_text(json.dumps(ledger))
    (folder / "bench.json").write_text(json.dumps(sample.bench()))
    (folder / "recipe.yaml").write_text(sample.RECIPE)
    return write_report(folder)


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with chromium.browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def test_nothing_overflows_and_nothing_is_logged(page, window):
    window.open(page)
    for width in (360, 390, 1440):
        for dark in (False, True):
            window.look(width, dark=dark)
            assert window.ask("document.documentElement.scrollWidth") <= width
            assert window.ask(OUTSIDE) == []
            assert window.ask(CUT_OFF) == [], "the answer, in the last column, is cut off"
            assert window.ask(OVERLAPS) == []
            assert window.ask(ROOM) > (0.7 * width if width < 500 else 100), "the bars of the widths are too short"
            assert window.ask(HALO).startswith("stroke"), "a line runs through the words of a plot"
            assert set(window.ask(SPOKEN)) == {"img true null"}, "each plot that is seen is told in words too"
            paper = window.ask(PAPER)
            assert (max(paper) < 60) if dark else (min(paper) > 200)
    assert window.ask("[...document.images].map(i => i.naturalWidth)") == [96] * 7
    assert window.errors == []
    assert page.stat().st_size < 2_000_000
    if folder := os.environ.get("NIWAKI_PICTURES"):
        for width in (360, 1440):
            window.look(width)
            window.picture(Path(folder) / f"report-{width}.png")


def test_bars_stay_on_paper(page, window):
    window.open(page)
    window.look(794)
    window.call("Emulation.setEmulatedMedia", media="print")
    assert window.ask("document.querySelectorAll('.fall .bar i, .spread b, .bar b, .share').length") > 20
    assert window.ask(FADES) == []
    window.call("Emulation.setEmulatedMedia", media="")


def test_runs_side_by_side_do_not_overflow_either(page, window, tmp_path):
    (tmp_path / "both.html").write_text(compare([page.parent, page.parent], "html"), encoding="utf-8")
    window.open(tmp_path / "both.html")
    for width in (360, 1440):
        window.look(width)
        assert window.ask("document.documentElement.scrollWidth") <= width
        assert window.ask(OUTSIDE) == []
    assert window.errors == []
