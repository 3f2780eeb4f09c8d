"""The device that is chosen, and those that are refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from unison.cli.main import _placed
from unison.config import best_device, choose_device
from unison.config.device import VARIABLE


@pytest.fixture(autouse=True)
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As PyTorch tells it on a machine with four."""
    for name in (VARIABLE, "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)


def test_the_accelerator_of_its_number_is_a_processs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert best_device() == torch.device("cuda", 0)
    for rank, number in ((3, 3), (5, 1)):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert best_device() == torch.device("cuda", number)


def test_a_named_one_goes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, device in (("cpu", torch.device("cpu")), ("cuda:2", torch.device("cuda", 2))):
        monkeypatch.setenv(VARIABLE, name)
        assert best_device() == device


@pytest.mark.parametrize("name", ["cuda:4", "mps", "cuda:x", "gpu"])
def test_one_that_is_not_here_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(ValueError, match="not here; choices: cpu"):
        choose_device(name)


def test_every_verb_takes_it_in_either_form() -> None:
    for words in (["--device", "cpu"], ["--device=cpu"]):
        assert _placed(["eval", "a", *words, "--items", "3"]) == ["eval", "a", "--items", "3"]
        assert best_device() == torch.device("cpu")
    with pytest.raises(ValueError, match="--device: name one"):
        _placed(["eval", "--device"])
