"""The benchmarks compare like with like: both sides of each row compute the same. Nothing here asserts on time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import denoising, judges, memory, rewards, rollout, scoring
from benchmarks.compare import Row, interleaved
from benchmarks.model import Drawing, build_policy, picture
from benchmarks.pages import DOCS, write_section
from unison.policies.janus import Janus
from unison.policies.shapes import JanusShape
from unison.rewards import REWARDS, load_rewards
from unison.types import Sampling

pytestmark = pytest.mark.slow

TOY = JanusShape(
    width=64,
    layers=2,
    heads=2,
    feed_forward=96,
    vocabulary=512,
    vision_width=32,
    vision_layers=1,
    vision_heads=2,
    vq_base_channels=32,
)
DRAWING = Drawing(side=4, codes=512)


@pytest.fixture(scope="module")
def toy() -> Janus:
    policy = build_policy(TOY, DRAWING)
    with torch.no_grad():  # sharp enough that a greedy choice is no coin toss
        for name, weight in policy.network.named_parameters():
            if "language_model" in name or "generation" in name:
                weight.mul_(5 if weight.ndim == 2 else 1)
    return policy


def test_both_samplers_draw_the_same_where_there_is_no_choice(toy: Janus) -> None:
    sides = rollout.sides(toy, group=3, guidance=5.0, greedy=True)
    ours, theirs = sides["unison"](), sides["transformers"]()
    assert ours.shape == theirs.shape == (3, DRAWING.tokens)
    assert torch.equal(ours, theirs)
    assert ours[0].unique().numel() > 2


def test_both_samplers_draw_a_whole_group(toy: Janus) -> None:
    for side in rollout.sides(toy, group=3, guidance=5.0).values():
        ids = side()
        assert ids.shape == (3, DRAWING.tokens)
        assert 0 <= ids.min() <= ids.max() < DRAWING.codes
        assert not torch.equal(ids[0], ids[1])


def test_shared_and_separate_contexts_score_alike(toy: Janus) -> None:
    sides = scoring.sides(toy, picture(DRAWING), group=3, length=5)
    (logp, gradient), (logp_separate, gradient_separate) = sides["shared"](), sides["separate"]()
    assert logp.shape == (3, 5)
    assert torch.allclose(logp, logp_separate, atol=1e-4)
    assert gradient.norm() > 0
    assert torch.allclose(gradient, gradient_separate, atol=1e-4 * gradient.abs().max().item())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_chunks_score_alike_in_half_the_memory() -> None:
    problem = memory.Problem(decisions=3000, width=64, codes=16384)
    chunked, whole = (memory.measure(side, problem, threads=1) for side in memory.SIDES)
    assert chunked.logp == pytest.approx(whole.logp, abs=1e-4)
    assert chunked.gradient == pytest.approx(whole.gradient, rel=1e-4)
    assert chunked.megabytes <= whole.megabytes / 2


def test_steps_score_alike_together_and_one_by_one() -> None:
    sides = denoising.sides(denoising.TOY, rows=3, sampling=Sampling(steps=4))
    (logp, gradient), (one_by_one, gradient_one_by_one) = sides["together"](), sides["step by step"]()
    assert logp.shape == (3, 4)
    assert torch.allclose(logp, one_by_one, atol=1e-4)
    assert gradient.norm() > 0
    assert torch.allclose(gradient, gradient_one_by_one, atol=1e-4 * gradient.abs().max().item())
    windowed, _ = sides["window"]()
    assert torch.allclose(windowed[:, denoising.WINDOW[0]], logp[:, denoising.WINDOW[0]], atol=1e-4)


def test_sides_take_turns() -> None:
    calls: list[str] = []
    seconds = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert "".join(calls) == "ab" + "abbaab"
    assert [len(values) for values in seconds.values()] == [3, 3]


def test_a_line_of_the_table_has_both_sides_and_their_ratio() -> None:
    row = Row("speed", unison=[1.0, 2.0, 4.0], other=[4.0, 6.0, 8.0], other_name="plain", unit="s", last="2")
    assert row.markdown() == "| speed | 2 [1, 4] s | plain: 6 [4, 8] s | **3.00** [2.00, 4.00] | 2 |"


# -- rewards -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return judges.build(tmp_path_factory.mktemp("judges"), judges.JudgeSize(width=32, layers=2, image=48))


@pytest.mark.parametrize("name", REWARDS)
def test_one_call_and_a_call_per_drawing_give_the_same_values(
    name: str, folders: dict[str, Path], policy: Janus
) -> None:
    spec = judges.spec(name, folders)
    sides = rewards.sides(load_rewards([spec])[spec], rewards.drawings(name, 3), policy)
    together, alone = sides["together"](), sides["alone"]()
    assert None not in together
    assert together == pytest.approx(alone, abs=1e-4)


def test_every_reward_says_how_it_is_computed() -> None:
    assert {*rewards.HOW} == {*REWARDS}


def test_quick_figures_are_printed_and_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    page = DOCS / "benchmarks.md"
    before = page.read_text()
    rewards.main(rewards.Options(quick=True, rewards=("mse", "world")))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == rewards.HEADER.splitlines()[0]
    assert [line.split()[1] for line in lines[2:4]] == ["`mse`", "`world`"]
    assert page.read_text() == before


@pytest.mark.parametrize("name", ["benchmarks.run", "benchmarks.rewards", "benchmarks.denoising"])
def test_every_benchmark_finds_its_section(name: str, tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text((DOCS / "benchmarks.md").read_text())
    write_section(page, name, "ours")
    assert f"<!-- {name} -->\n\nours\n\n<!-- end {name} -->" in page.read_text()
