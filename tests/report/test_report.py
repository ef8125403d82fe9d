"""The page holds every figure given to it, escapes text, fetches nothing and survives what is missing."""

import builtins
import copy
import importlib.util
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from deploy.errors import DeployError, MissingDependency
from deploy.report import markup, render, units, write_report
from deploy.report.page import _budget
from deploy.report.plots import Point, accuracy_latency
from deploy.report.view import Results, wilson

pytestmark = pytest.mark.heavy

SPEC = importlib.util.spec_from_file_location("niwaki_report_sample", Path(__file__).with_name("sample.py"))
sample = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(sample)

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Reads a page, insisting that every element is closed by its own end tag."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def html() -> str:
    return render(sample.ledger(), sample.bench(), sample.RECIPE)


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def test_the_verdict_says_the_run_in_one_sentence():
    assert Results(sample.ledger(), sample.bench(), {}).verdict().replace(units.SPACE, " ") == (
        "The distilled int8 network gets 96.8 % of the 1,397 test images right (0.6 points below its dense "
        "teacher), needs 49.8 % of the MACs and 15.5 % of the file size (171 kB), and runs 2.41× as fast "
        "(0.33 ms against 0.79 ms at best, 0.34 ms against 0.83 ms by medians, 1 thread, batch 1)."
    )


@pytest.mark.parametrize(
    "ship, start, speed",
    [("fp32", "The distilled network gets", "1.68×"), ("fp16", "The distilled fp16 network gets", "1.48×")],
)
def test_the_verdict_is_about_what_the_recipe_ships(ship, start, speed):
    verdict = Results(sample.ledger(), sample.bench(), {"deploy": {"ship": ship}}).verdict()
    assert verdict.startswith(start) and f"runs {speed} as fast" in verdict


def test_a_slower_network_is_not_praised():
    bench = sample.bench()
    bench["records"][4].update(median_ms=1.2, speedup=0.69, ratio_interval=[1.41, 1.47])
    assert "only 0.69× as fast" in Results(sample.ledger(), bench, {}).verdict()
    bench["records"][4].update(speedup=0.99, ratio_interval=[0.97, 1.04])
    assert "about as fast" in Results(sample.ledger(), bench, {}).verdict()


FIGURES = """
97.4 % | 35.9 % | −61.5 points | 40.8 M | 20.3 M | 272 k | 131 k | 1.1 MB | 539 kB | 0.83 ms | 1.16 ms
0.48 ms | 2.41× | 2.34× to 2.46× | +8.9 points | +10.8 points | within chance (±1.4) | layer3.0.conv1 | 64 → 24
42.3 s | 5.90 T | 1 min 34 s | 3.7e−14 | ≤ 1.0e−08 | ✓ holds | 120.4 dB | distilled-fp16-rtx-sm89
no NVIDIA GPU of sm86 here | Intel Xeon 2.6 GHz | 2.15.0 | per_class: 20 | budget macs ≤ 50 %
"""


@pytest.mark.parametrize("figure", [part.strip() for part in re.split(r"[|\n]", FIGURES.strip())])
def test_the_page_shows(page, figure):
    assert figure in page.text


def test_the_page_fetches_nothing_and_runs_nothing(page, html):
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    names = {name for _, name, _ in page.attributes}
    assert not names & {"src", "srcset", "data", "action", "poster"}
    links = [value for _, name, value in page.attributes if name in ("href", "xlink:href")]
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"@import|url\((?!#)|@font-face", html)
    assert not [name for name in names if name.startswith("on")]


def test_the_plot_is_text_in_the_colours_of_the_page(html):
    drawing = html[html.index('<div class="plot large"') : html.index('<div class="plot small"')]
    assert re.search(r">\s*dense\s*<", drawing) and "<!DOCTYPE" not in drawing and "<?xml" not in drawing
    assert "var(--c-int8)" in drawing and not re.search(r"#0[1-9]0[1-9]0[1-9]", drawing)


def test_ids_are_used_once(page):
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_the_same_run_gives_the_same_page(html):
    assert html == render(sample.ledger(), sample.bench(), sample.RECIPE)


def spoil(value, text):
    """Every string replaced by `text`, but those that the page decides by."""
    if isinstance(value, dict):
        return {k: v if k in ("status", "format") else spoil(v, text) for k, v in value.items()}
    if isinstance(value, list):
        return [spoil(v, text) for v in value]
    return text if isinstance(value, str) else value


@pytest.mark.parametrize(
    "attack", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$body ${name} </pre>"]
)
def test_text_from_outside_stays_text(attack):
    quoted = json.dumps(attack)
    recipe = f"name: {quoted}\nprune: {{criterion: {quoted}}}\n{quoted}: {{a: 1}}\n"
    ledger, bench = spoil(sample.ledger(), attack), spoil(sample.bench(), attack)
    ledger["plan"]["protected"] = {attack: attack}
    ledger["stages"][0]["metrics"] = {attack: attack}
    bench["machine"] = {attack: attack}
    page = Page(render(ledger, bench, recipe))
    assert not {"script", "img"} & set(page.tags)
    assert attack in " ".join(page.words)


PAINT = """'"><meta http-equiv="refresh" content="0;url=//a"><form action="//a"><button>OK</button></form>"""


def main_of(html):
    """Without the styles, which take most of the time to parse."""
    return html[html.index("<main>") : html.index("</body>")]


def test_no_field_of_ledger_or_record_becomes_markup(no_plot):
    """Each value and each key by itself, with all others as they were; the metric too, which the header shows."""
    ledger, bench = {**sample.ledger(), "metric": "mAP", "notes": ["a"]}, sample.bench()
    for of, key in ((ledger["plan"], "groups"), (ledger, "stages"), (ledger, "models"), (bench, "records")):
        of[key] = of[key][:1]
    ledger["classes"] = ledger["classes"][:1]
    plain = Page(main_of(render(ledger, bench, "")))
    places = [(0, path) for path in paths(ledger)] + [(1, path) for path in paths(bench)]
    painted = 0
    for which, path in places:
        for spoil_it in (changed, renamed):
            files = [ledger, bench]
            files[which] = spoil_it(files[which], path, PAINT)
            body = main_of(render(*files, ""))
            if "form action" in body:
                page = Page(body)
                assert set(page.tags) <= set(plain.tags), path
                assert {name for _, name, _ in page.attributes} <= {name for _, name, _ in plain.attributes}, path
                painted += 1
    assert painted > 40
    assert PAINT in Page(render({**ledger, "metric": PAINT}, bench, "")).text


def test_what_is_no_markup_is_escaped_whatever_it_is_put_into():
    for built in (markup.td(PAINT), markup.tr(PAINT), markup.card(PAINT), markup.pair(PAINT, ""), markup.join([PAINT])):
        assert "<meta" not in built and "&lt;meta" in built
    added = "<i>" + markup.Markup("<i>")
    assert markup.fill("<b>{a}{b}</b>", a=markup.Markup("<i>"), b=added) == "<b><i>&lt;i&gt;&lt;i&gt;</b>"


def paths(value, above=()):
    """Every place in a nested value, as keys from the top."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*above, key)
        yield from paths(inner, (*above, key))


def changed(value, path, new):
    copied = copy.deepcopy(value)
    *above, last = path
    target = copied
    for key in above:
        target = target[key]
    if new is KeyError:
        del target[last]
    else:
        target[last] = new
    return copied


def renamed(value, path, new):
    """The same with the last key of the path renamed, where it is a key of a dict."""
    copied = copy.deepcopy(value)
    target = copied
    for key in path[:-1]:
        target = target[key]
    if isinstance(target, dict):
        target[new] = target.pop(path[-1])
    return copied


@pytest.fixture
def no_plot(monkeypatch):
    """Plots have their own tests and take most of the time: here they are drawn and not laid out."""

    def sketched(draw, **_):
        figure = Figure()
        draw(figure, FigureCanvasAgg(figure))
        return "<svg></svg>"

    monkeypatch.setattr("deploy.report.outcome.accuracy_latency", lambda points, **_: "")
    for module in ("calibration", "sensitivity"):
        monkeypatch.setattr(f"deploy.report.{module}.drawn", sketched)


@pytest.mark.heavy
@pytest.mark.parametrize("new", [KeyError, None, float("nan"), "text", -1, 10**400, [], {}, True], ids=str)
def test_no_single_missing_or_odd_value_stops_the_page(no_plot, new):
    ledger, bench = sample.ledger(), sample.bench()
    ledger["plan"]["groups"], ledger["stages"] = ledger["plan"]["groups"][:1], ledger["stages"][:1]
    bench["records"] = [bench["records"][place] for place in (0, 4, 5)]
    for path in paths(ledger):
        Page(render(changed(ledger, path, new), bench, sample.RECIPE))
    for path in paths(bench):
        Page(render(ledger, changed(bench, path, new), sample.RECIPE))


def test_nothing_at_all_is_still_a_page():
    page = Page(render({}, {}, ""))
    assert "This run has not measured anything yet." in page.text
    assert "nan" not in page.text and "None" not in page.text


def test_a_recipe_that_is_not_yaml_is_shown_as_it_is(no_plot):
    assert "a: [1" in Page(render(sample.ledger(), sample.bench(), "a: [1")).text


@pytest.mark.heavy
@pytest.mark.parametrize(
    "recipe", ["[" * 3000, "a: 1" + "0" * 5000, "a: 0x" + "f" * 5000, "a: &a [x]\nb: [*a, *a]"], ids=lambda r: r[:8]
)
def test_a_recipe_that_would_stop_the_page_is_shown_as_it_is(no_plot, recipe):
    assert recipe[-9:] in Page(render(sample.ledger(), sample.bench(), recipe)).text


def test_many_groups_are_folded(no_plot):
    ledger = sample.ledger()
    ledger["plan"]["groups"] = [{"name": f"g{i}", "before": 64, "after": 32} for i in range(60)]
    page = Page(render(ledger, sample.bench(), ""))
    assert "and 36 more" in page.text and "g59" in page.text


def boxes(svg: str) -> list[tuple[str, float, float, float, float]]:
    """The texts of a drawing, each line of a label by itself, with their rough extents."""
    found = []
    for attributes, text in re.findall(r"<text([^>]*)>([^<]+)</text>", svg):
        place = re.search(r'translate\(([-\d.]+) ([-\d.]+)\)|x="([-\d.]+)" y="([-\d.]+)"', attributes)
        x, y = (float(number) for number in place.groups() if number)
        size = float(re.search(r"font-size: ([\d.]+)px", attributes)[1])
        width = 0.5 * size * len(text)
        anchor = re.search(r"text-anchor: (\w+)", attributes)
        left = x - {"middle": width / 2, "end": width}.get(anchor[1] if anchor else "start", 0.0)
        if "rotate(-90" not in attributes:
            found.append((text, left, y - 0.7 * size, left + width, y))
    return found


@pytest.mark.parametrize("width, height", [(8.6, 4.0), (4.1, 4.3)])
@pytest.mark.parametrize(
    "latencies, accuracies",
    [
        ((0.83, 0.497, 0.495, 0.561, 0.345), (0.974, 0.359, 0.971, 0.971, 0.968)),
        ((0.50, 0.49, 0.48, 0.51, 0.47), (0.97, 0.97, 0.97, 0.97, 0.97)),
        ((83.0, 43.0, 42.0, 44.0, 1.4), (0.76, 0.001, 0.75, 0.75, 0.74)),
        ((1.0, 1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0, 1.0)),
    ],
)
def test_labels_do_not_overlap(width, height, latencies, accuracies):
    names = ("dense", "pruned", "distilled", "distilled-fp16", "int8")
    points = [
        Point(name, name, latency, accuracy, 1.1 * latency, *wilson(accuracy, 1397))
        for name, latency, accuracy in zip(names, latencies, accuracies, strict=True)
    ]
    found = boxes(accuracy_latency(points, width=width, height=height, salt="test", metric="accuracy"))
    assert set(names) <= {text for text, *_ in found}
    for (a, *p), (b, *q) in itertools.combinations(found, 2):
        apart = p[2] <= q[0] or q[2] <= p[0] or p[3] <= q[1] or q[3] <= p[1]
        assert apart, f"{a!r} overlaps {b!r}"


def test_without_matplotlib_the_way_out_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError("No module named 'matplotlib'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependency, match=r"pip install \"niwaki-vision\[report\]\""):
        render(sample.ledger(), sample.bench(), "")


def fill(folder: Path) -> Path:
    (folder / "ledger.json").write_text(json.dumps(sample.ledger()))
    (folder / "bench.json").write_text(json.dumps(sample.bench()))
    (folder / "recipe.yaml").write_text(sample.RECIPE)
    return folder


def test_write_report_leaves_one_file(tmp_path, html):
    assert write_report(fill(tmp_path)) == tmp_path / "report.html"
    assert (tmp_path / "report.html").read_text("utf-8") == html
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "bench.json",
        "ledger.json",
        "recipe.yaml",
        "report.html",
    ]


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("ledger.json", None, "cannot be read"),
        ("bench.json", "{", "is not JSON"),
        ("bench.json", "[" * 9999, "is not JSON"),
        ("ledger.json", "1" * 9999, "is not JSON"),
        ("bench.json", '{"format": "niwaki-bench-9"}', "'niwaki-bench-9', not 'niwaki-bench-1'"),
        ("ledger.json", "[]", "the format 'list'"),
        ("recipe.yaml", None, "cannot be read"),
    ],
)
def test_a_folder_that_is_not_a_run(tmp_path, name, text, said):
    file = fill(tmp_path) / name
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(DeployError, match=re.escape(said)) as error:
        write_report(tmp_path)
    assert name in str(error.value) and not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "written, value",
    [
        (units.count(40_800_000), "40.8 M"),
        (units.count(271_999), "272 k"),
        (units.count(999_960), "1.00 M"),
        (units.count(7), "7"),
        (units.size(1_103_220), "1.1 MB"),
        (units.size(171_400), "171 kB"),
        (units.size(12), "12 B"),
        (units.milliseconds(0.8312), "0.83 ms"),
        (units.milliseconds(0.0834), "0.083 ms"),
        (units.milliseconds(12.34), "12.3 ms"),
        (units.milliseconds(0.999), "1.00 ms"),
        (units.times(2.412), "2.41×"),
        (units.times(12.34), "12.3×"),
        (units.times(0.49), "0.49×"),
        (units.times(1.04), "1.04×"),
        (units.percent(0.9731), "97.3 %"),
        (units.points(-0.0004), "±0.0 points"),
        (units.points(-0.004), "−0.4 points"),
        (units.seconds(59.96), "1 min 00 s"),
        (units.seconds(3725), "1 h 02 min"),
        (units.scientific(4.2e-15), "4.2e−15"),
        (units.scientific(0.0), "0"),
        (units.decibels(120.04), "120.0 dB"),
        (units.count(float("inf")), "–"),
        (units.count(10**400), "–"),
        (units.percent("97"), "–"),
        (units.times(None), "–"),
        (units.count(True), "–"),
    ],
)
def test_units(written, value):
    assert written.replace(units.SPACE, " ") == value


def test_a_detectors_page_speaks_of_map_and_draws_no_interval_of_shares():
    shown = render(sample.ledger() | {"task": "detection", "metric": "mAP"}, sample.bench(), sample.RECIPE)
    assert "Test mAP" in shown
    assert re.search(r"reaches [\d.]+\s?% mAP on the", shown)
    assert "mAP against latency" in shown
    assert "95 % interval of the accuracy" not in shown
    assert "95 % interval of the accuracy" in render(sample.ledger(), sample.bench(), sample.RECIPE)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"macs": 0.25, "precision": "fp32", "batch": 1}, "macs ≤ 25 %"),
        ({"macs": 0.5, "size": 200_000, "precision": "int8"}, "macs ≤ 50 %, size ≤ 200,000 bytes at precision int8"),
        ({"memory": 0.5, "precision": "fp16", "batch": 8}, "memory ≤ 50 % at precision fp16, batch 8"),
        ({"latency": 0.4, "precision": "fp32", "batch": 1}, "latency ≤ 40 %"),
    ],
)
def test_a_budget_says_its_bounds(budget, said):
    assert _budget(budget).replace(units.SPACE, " ") == said
