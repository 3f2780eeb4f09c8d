"""The benchmarks compare like with like: both sides of each row compute the same. Nothing here asserts on time."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import judges
from benchmarks.pages import DOCS, write_section
from benchmarks.speed import (
    denoising,
    gradients,
    growth,
    masked,
    memory,
    replies,
    rewards,
    rollout,
    scoring,
    step,
    targets,
)
from benchmarks.speed.compare import Row, interleaved
from benchmarks.speed.model import Drawing, build_policy, picture
from unison.config import ScoringConfig
from unison.policies.janus.policy import Janus
from unison.policies.janus.shape import JanusShape
from unison.policies.showo.policy import ShowO
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
@pytest.mark.parametrize(("decisions", "codes"), [(3000, 16384), (400, 151_936)], ids=["Janus", "Qwen"])
def test_chunks_score_alike_in_half_the_memory(decisions: int, codes: int) -> None:
    problem = memory.Problem(decisions, width=64, codes=codes)
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


def test_siblings_score_alike_under_one_context_and_under_equal_ones() -> None:
    sides = denoising.group_sides(2)
    for one, other in zip(sides["shared"](), sides["each"](), strict=True):
        torch.testing.assert_close(one, other)


# -- a whole step ----------------------------------------------------------------------------------------------------


@pytest.fixture
def steps(tmp_path: Path) -> step.Steps:
    problem = step.Problem(4, 512, group=3, reply=6, guidance=5.0, conditional=False, dtype="float32")
    step.write_checkpoint(problem, tmp_path, TOY)
    return step.Steps(step.open_trainer(problem, tmp_path), problem)


def weights(steps: step.Steps) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in steps.plain.trained])


@pytest.mark.parametrize("conditional", [False, True])
def test_the_trainer_and_the_plain_step_change_weights_alike(steps: step.Steps, conditional: bool) -> None:
    steps.problem = replace(steps.problem, conditional=conditional)
    trajectories, before = steps.roll_out(), weights(steps)
    loss, norm = steps.update(trajectories)
    ours = weights(steps) - before
    with torch.no_grad():
        torch.nn.utils.vector_to_parameters(before.clone(), steps.plain.trained)
    plain_loss, plain_norm = steps.update_plainly(*step.ids_of(trajectories))
    assert loss == pytest.approx(plain_loss, abs=1e-5)
    assert norm == pytest.approx(plain_norm, rel=1e-4)
    assert torch.cosine_similarity(ours, weights(steps) - before, 0) > 0.999


def test_both_sides_sample_a_whole_group(steps: step.Steps) -> None:
    for drawings, written in (step.ids_of(steps.roll_out()), steps.roll_out_plainly()):
        assert drawings.shape == (3, 16)
        assert len(written) == 3
        assert all(1 <= len(reply) <= 6 for reply in written)


def test_greedy_replies_are_generates(steps: step.Steps) -> None:
    _, question = steps._contexts()
    (plain,) = steps.plain.write(question, 1, 6, greedy=True)
    (ours,) = steps.policy.write([question], Sampling(temperature=rollout.GREEDY, max_tokens=6), [0])
    assert torch.equal(ours.ids, plain)


def test_replies_are_the_same_refilled_and_batch_after_batch(toy: Janus) -> None:
    sides = replies.sides(toy, count=6, width=2, longest=80)
    refilled, batches = sides["refilled"](), sides["batches"]()
    assert len({len(reply) for reply in refilled}) > 2
    assert [reply.tolist() for reply in refilled] == [reply.tolist() for reply in batches]


def test_the_exponent_of_a_power_law_is_found() -> None:
    assert growth.fit_exponent({2: 3 * 2**1.5, 4: 3 * 4**1.5, 8: 3 * 8**1.5}) == pytest.approx(1.5)
    assert growth.fit_exponent({5: 1.0, 10: 1.0}) == pytest.approx(0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
@pytest.mark.parametrize("module", [targets, growth], ids=["targets", "growth"])
def test_quick_tables_are_printed_and_not_written(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    before = (DOCS / "benchmarks.md").read_text()
    module.main(module.Options(quick=True, threads=1))
    out = capsys.readouterr().out
    assert f"- command: `python -m {module.__name__}" in out
    assert sum(line.startswith("| ") for line in out.splitlines()) == {targets: 9, growth: 5}[module]
    assert (DOCS / "benchmarks.md").read_text() == before


def test_sides_take_turns() -> None:
    calls: list[str] = []
    seconds = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert "".join(calls) == "ab" + "abbaab"
    assert [len(values) for values in seconds.values()] == [3, 3]


def test_a_line_of_the_table_has_both_sides_and_their_ratio() -> None:
    row = Row("speed", unison=[1.0, 2.0, 4.0], other=[4.0, 6.0, 8.0], other_name="plain", unit="s", last="2")
    assert row.markdown() == "| speed | 2 [1, 4] s | plain: 6 [4, 8] s | **3.00** [2.00, 4.00] | 2 |"


# -- Show-o ----------------------------------------------------------------------------------------------------------


def test_a_cached_reply_is_the_published_programs(showo: ShowO) -> None:
    replies = [run() for run in masked.answering(showo, length=8).values()]
    assert len(replies) == 3
    assert len(replies[0]) == 8
    assert replies[0].unique().numel() > 2
    assert all(torch.equal(replies[0], other) for other in replies)


def test_a_batch_draws_what_single_calls_draw(showo: ShowO) -> None:
    sides = masked.drawing(showo, group=3, sampling=Sampling(guidance=3.0, rounds=5))
    together, alone = sides["together"](), sides["alone"]()
    assert together.shape == (3, showo.layout.image_tokens)
    assert torch.equal(together, alone)
    assert not torch.equal(together[0], together[1])


def test_updates_score_what_their_names_say(showo: ShowO) -> None:
    sides = masked.updating(showo, count=2, sampling=Sampling(guidance=3.0, rounds=6))
    scored = {name: (run() != 0).sum(1) for name, run in sides.items()}
    assert (scored["all rounds"] == 36).all()
    assert (scored["the whole canvas"] == 36).all()
    assert all((scored[f"{few} rounds"] < 36).all() for few in (2, 4))
    assert (scored["random masks"] > 0).all()
    assert all(p.grad is None for p in showo.parameters())


def test_gradients_of_some_rounds_average_to_that_of_all_and_of_surrogates_do_not(showo: ShowO) -> None:
    options = gradients.Options("tiny", prompts=2, group=3, rounds=5, reward="random")
    batch = gradients.draw_batch(showo, options, 0)
    whole = gradients.gradient(showo, batch, showo.select(batch.drawings, ScoringConfig(), 0))
    choices = {"some": ScoringConfig(rounds=1), "canvas": ScoringConfig(drawings="whole_canvas")}
    found = {name: gradients.agreement(showo, batch, whole, optim, draws=40) for name, optim in choices.items()}
    assert found["some"].canvases == found["canvas"].canvases == 1
    assert found["some"].mean > 0.95
    assert found["some"].one < found["some"].mean
    assert found["canvas"].one == found["canvas"].mean < 0.9


def test_errors_at_right_angles_cancel_as_expected() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(16, 4000, generator=generator)
    true = torch.zeros(4000)
    true[0] = 20.0
    one = sum(gradients.cosine(true + n, true) for n in noise) / 16
    mean = gradients.cosine((true + noise).mean(0), true)
    assert gradients.if_unbiased(one, 16) == pytest.approx(mean, abs=0.03)
    assert gradients.if_unbiased(one, 1) == pytest.approx(one)


def test_drawings_that_earn_alike_have_no_gradient_to_compare(showo: ShowO) -> None:
    with pytest.raises(ValueError, match="no siblings of batch 0 differ; take `--reward random`"):
        gradients.draw_batch(showo, gradients.Options("tiny", prompts=1, group=2, reward="format"), 0)


def test_a_quick_comparison_of_gradients_is_printed_and_not_written(
    showo: ShowO, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    showo.save(tmp_path)
    before = (DOCS / "benchmarks.md").read_text()
    gradients.main(gradients.Options(str(tmp_path), quick=True, reward="random", group=2, rounds=4))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0][2:] for line in lines[2:9]] == [*gradients.COMPARED, "all rounds, of another batch"]
    assert (DOCS / "benchmarks.md").read_text() == before


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


@pytest.mark.parametrize(
    "name",
    [
        "benchmarks.speed.run",
        "benchmarks.speed.rewards",
        "benchmarks.speed.masked",
        "benchmarks.speed.gradients",
        "benchmarks.speed.denoising",
        "benchmarks.speed.remote",
        "benchmarks.speed.targets",
        "benchmarks.speed.growth",
    ],
)
def test_every_benchmark_finds_its_section(name: str, tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text((DOCS / "benchmarks.md").read_text())
    write_section(page, name, "ours")
    assert f"<!-- {name} -->\n\nours\n\n<!-- end {name} -->" in page.read_text()
