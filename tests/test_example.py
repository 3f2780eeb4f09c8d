"""The loop without the trainer does what the trainer does, and the Python interface has its names."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import unison

REPO = Path(__file__).resolve().parents[1]
LOOP = REPO / "examples" / "loop.py"


def test_the_loop_fits_in_150_lines_and_knows_no_trainer():
    text = LOOP.read_text()
    assert text.count("\n") <= 150
    assert "unison.training" not in text


@pytest.mark.slow
def test_the_loop_runs_and_the_reward_rises():
    done = subprocess.run(
        [sys.executable, str(LOOP), "--steps", "16", "--items", "8"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    )
    means = [float(mean) for mean in re.findall(r"reward ([\d.]+)", done.stdout)]
    assert len(means) == 16
    assert sum(means[-5:]) / 5 > sum(means[:5]) / 5 + 0.1
    ratios = [float(ratio) for ratio in re.findall(r"ratio ([\d.]+)", done.stdout)]
    assert len(ratios) == 32  # of texts and of drawings
    assert all(ratio == pytest.approx(1, abs=1e-3) for ratio in ratios)  # one update a rollout: scored as sampled


def test_every_name_of_the_python_interface_is_there():
    assert all(getattr(unison, name) for name in unison.__all__)
    with pytest.raises(AttributeError, match=r"no attribute 'trainer'; it has Context, .*Trainer"):
        _ = unison.trainer
