"""The study of criteria: cells run once, later stages follow earlier ones, tables carry intervals."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from benchmarks.criteria import cells, stages
from benchmarks.criteria.__main__ import app
from benchmarks.criteria.cells import Cell, read_lines
from benchmarks.criteria.plots import plot
from benchmarks.criteria.subjects import Subject, answers_right
from benchmarks.criteria.tables import drop, over_seeds, tables
from compress.models.cifar_resnet import cifar_resnet


@pytest.fixture
def subject(monkeypatch):
    """A small network on noise, the classes of which are its own answers, mostly."""
    torch.manual_seed(0)
    network = cifar_resnet(8, 8, num_classes=4, shortcut="pad").eval()
    images = torch.randn(48, 3, 16, 16)
    with torch.no_grad():
        labels = network(images).argmax(1)
    labels[0] = (labels[0] + 1) % 4

    def judged(split: str) -> Iterator[tuple[Tensor, Tensor]]:
        yield images, labels

    own = Subject("small", network, lambda count, seed: [(images[:count], None)], judged)
    monkeypatch.setattr(cells, "subject", lambda name: own)
    cells._subject.cache_clear()
    cells._dense.cache_clear()
    yield own
    cells._subject.cache_clear()
    cells._dense.cache_clear()


def test_a_cell_is_run_once_and_tells_what_was_lost(subject, tmp_path):
    file, said = tmp_path / "lines.jsonl", []
    wanted = [Cell("small", "l1", images=16), Cell("small", "apoz", images=16, rounds=2)]
    cells.run(wanted, file, said.append)
    cells.run(wanted, file, said.append)
    lines = read_lines(file)
    assert [line["criterion"] for line in lines] == ["l1", "apoz"]
    assert len(said) == 2
    for line in lines:
        assert line["dense"]["right"] == 47
        assert line["share"] <= 0.5
        assert line["solved"]["right"] == 47 - line["solved"]["lost"] + line["solved"]["won"]
        assert line["after"] <= line["before"]


def test_a_criterion_that_refuses_is_a_line_that_says_why(subject, tmp_path, monkeypatch):
    for module in subject.network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight = module.bias = None
    cells.run([Cell("small", "bn_scale")], tmp_path / "lines.jsonl", lambda _: None)
    (line,) = read_lines(tmp_path / "lines.jsonl")
    assert "take another criterion" in line["refused"]
    assert "take another criterion" in tables([line])


def line(criterion, scope, right, split="selection", seed=0, macs=0.5):
    found = {"right": right, "lost": 90 - right, "won": 0}
    return vars(Cell("small", criterion, scope, split=split, seed=seed, macs=macs)) | {
        "judged": 100, "dense": {"right": 90}, "cut": found, "solved": found, "before": 1.0, "after": 0.5,
        "share": 0.5, "cpu_seconds": 1.0,
    }  # fmt: skip


def test_later_stages_follow_what_was_chosen():
    lines = [line("kfac", "global", 80), line("kfac", "group", 85), line("l1", "global", 70)]
    lines += [line("fisher", "global", 60), line("apoz", "group", 65), line("thinet", "global", 50)]
    names = [cell.criterion for cell in stages.cells("allocation", "small", lines, 8)]
    assert names == [name for name in ("kfac", "l1", "apoz", "fisher") for _ in range(4)]
    asked = [(c.criterion, c.scope, c.seed) for c in stages.cells("test", "small", lines, 8) if c.seed == 2]
    assert asked == [("kfac", "group", 2), ("apoz", "group", 2), ("fisher", "global", 2), ("kfac", "global", 2),
                     ("l1", "global", 2), ("random", "global", 2)]  # fmt: skip
    assert all(cell.split == "test" for cell in stages.cells("test", "small", lines, 8))


def test_other_shares_have_tables_of_their_own_and_choose_nothing(tmp_path):
    lines = [line("l1", "global", 80, macs=0.7), line("kfac", "global", 70), line("apoz", "global", 60, macs=0.35)]
    text = tables(lines)
    titles = [part for part in text.split("**") if part.startswith("small")]
    assert titles == ["small at 70 % of the MACs", "small at 50 % of the MACs", "small at 35 % of the MACs"]
    assert text.index("70 %") < text.index("| l1 |") < text.index("| kfac |") < text.index("| apoz |")
    assert [found["criterion"] for found in stages.ranking(lines, "small")] == ["kfac"]
    (file,) = plot(lines, tmp_path)
    assert "at 50 % of the MACs" in file.read_text()


def test_the_command_runs_every_share_that_is_asked_for(subject, tmp_path, monkeypatch):
    # The command is a process of its own; here its settings would outlive it.
    monkeypatch.setattr("os.nice", lambda by: 0)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    file = tmp_path / "lines.jsonl"
    asked = ["run", "criteria", "small", "--only", "l1", "--images", "16", "--results", str(file)]
    assert CliRunner().invoke(app, [*asked, "--macs", "0.7", "--macs", "0.35"]).exit_code == 0
    lines = read_lines(file)
    assert [found["macs"] for found in lines] == [0.7, 0.35]
    assert all(found["share"] <= found["macs"] for found in lines)
    assert lines[0]["share"] > 0.5
    assert CliRunner().invoke(app, [*asked, "--macs", "35"]).exit_code == 2


def test_intervals_by_hand():
    # 10 lost and none won of 100: 10 +- 1.96 sqrt(0.1 - 0.01) / 10.
    assert drop(line("l1", "global", 80), "solved") == "10.0 ± 5.9"
    # 1, 2, 3: deviation 1, t 4.303, over the root of 3.
    assert over_seeds([1.0, 2.0, 3.0]) == "2.0 ± 2.5"
    text = tables([line("l1", "global", 80, "test", seed) for seed in range(3)])
    assert "| l1 | global | mean | 80.0 ± 0.0 | 80.0 ± 0.0 | 10.0 ± 0.0 | 3 |" in text


def test_a_plot_for_each_subject(tmp_path):
    (file,) = plot([line("l1", "global", 80), line("kfac", "global", 85), line("kfac", "group", 86)], tmp_path / "new")
    assert file.name == "criteria-small.svg"
    assert file.read_text().startswith("<?xml")


def test_answers_are_counted_image_by_image(subject):
    right = answers_right(subject.network, subject.judged("selection"))
    assert right.tolist() == [False] + [True] * 47


def test_norms_are_compared_and_the_best_goes_on_to_the_test():
    asked = stages.cells("normalization", "small", [], 8)
    ways = {(cell.criterion, cell.normalize) for cell in asked}
    assert len(ways) == len(asked) == 4 * len(stages.NORMED)
    # kfac's own way is `none`, that of l1 `mean`: both have the line of the first stage.
    assert {("kfac", None), ("kfac", "mean"), ("l1", None), ("l1", "none")} <= ways
    assert not {("kfac", "none"), ("l1", "mean")} & ways
    other = line("l1", "global", 89) | {"normalize": "max"}
    assert [found["solved"]["right"] for found in stages.ranking([other, line("l1", "global", 80)], "small")] == [80]
    assert "| l1 | global | max |" in tables([other])
    best = line("fisher", "global", 85) | {"normalize": "cost"}
    (first, *_) = stages.cells("test", "small", [line("fisher", "global", 80), best], 8)
    assert (first.criterion, first.scope, first.normalize, first.split) == ("fisher", "global", "cost", "test")
