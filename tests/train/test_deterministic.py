"""Deterministic mode holds inside its block and nowhere else, and what it refuses is one sentence."""

import os

import pytest
import torch

from compress.errors import TrainingError
from compress.train.fabric import CUBLAS, deterministic


def now():
    cudnn = torch.backends.cudnn
    enabled = torch.are_deterministic_algorithms_enabled()
    return enabled, cudnn.deterministic, cudnn.benchmark, os.environ.get(CUBLAS)


def test_all_is_as_it_was_afterwards(monkeypatch):
    monkeypatch.delenv(CUBLAS, raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = now()
    with deterministic(True):
        assert now() == (True, True, False, ":4096:8")
    assert now() == before
    with pytest.raises(KeyError), deterministic(True):
        raise KeyError
    assert now() == before


def test_a_workspace_that_the_user_set_stays(monkeypatch):
    monkeypatch.setenv(CUBLAS, ":16:8")
    with deterministic(True):
        assert os.environ[CUBLAS] == ":16:8"
    assert os.environ[CUBLAS] == ":16:8"


def test_without_it_nothing_changes():
    before = now()
    with deterministic(False):
        assert now() == before


def test_an_operator_without_one_is_one_sentence():
    with pytest.raises(TrainingError, match="put_ has no deterministic algorithm") as refused, deterministic(True):
        raise RuntimeError("put_ does not have a deterministic implementation, but you set ...")
    assert "\n" not in str(refused.value)
    with pytest.raises(RuntimeError, match="something else"), deterministic(True):
        raise RuntimeError("something else")
