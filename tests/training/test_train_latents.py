"""Drawings by denoising train through the same trainer: replay, divergence, micro-batches, resuming, step subsets.

The model is a small plain network that draws with `policies.sde` and writes with `policies.tokens`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unison.config import (
    DataConfig,
    EvalConfig,
    ObjectiveConfig,
    OptimConfig,
    PolicyConfig,
    RunConfig,
    ScenarioConfig,
    ScoringConfig,
    StepConfig,
    WindowConfig,
    from_json,
    to_json,
)
from unison.evaluation.held_out import evaluate
from unison.objectives import has_penalty
from unison.policies.actions import sampled
from unison.policies.base import Policy
from unison.policies.decisions import noising, sde, selection, tokens
from unison.policies.grouping import Kind, in_kinds, kind_of, pick
from unison.scenarios.common import Seeds, windowed
from unison.training.optimizer import parameter_groups
from unison.training.trainer import Trainer
from unison.types import Action, Context, ImageSampling, Item, Latents, Noised, Sampling, Selected, Tokens, Trajectory

SHAPE = (3, 8, 8)
WORDS = 6
GUIDED = ImageSampling(steps=5, guidance=2.5)
DRAWN = Sampling.of(GUIDED)


class Sketch(nn.Module):
    """What a context says becomes 8 numbers, from which a convolution gives velocities and a matrix gives words."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(32, 8)
        self.paint = nn.ModuleDict({"enter": nn.Conv2d(4, 8, 3, padding=1), "leave": nn.Conv2d(8, 3, 3, padding=1)})
        self.speak = nn.Linear(8, 3 * WORDS)

    def velocity(self, x: Tensor, sigma: Tensor, meaning: Tensor) -> Tensor:
        plane = sigma.view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        return self.paint["leave"](torch.tanh(self.paint["enter"](torch.cat([x, plane], 1)) + meaning[..., None, None]))


class Sketcher(Policy):
    """A policy of that network: three words a reply, drawings of 8 x 8 pixels that are their own latents."""

    family = "sketch"
    abilities = frozenset({"draw", "write", "denoise drawings"})
    chunk = 0
    """States scored in one pass; 0 takes all."""

    def meanings(self, contexts: Sequence[Context]) -> Tensor:
        return self.network.read(torch.stack([features(context) for context in contexts]))  # type: ignore[operator]

    def velocity(self, contexts: Sequence[Context], sampling: Sampling) -> sde.Velocity:
        known, unknown = self.meanings(contexts), self.network.read(torch.zeros(32))  # type: ignore[operator]

        def of(x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
            conditional = self.network.velocity(x, sigma, known[rows])  # type: ignore[operator]
            if sampling.guidance == 1:
                return conditional
            unconditional = self.network.velocity(x, sigma, unknown.expand(len(x), -1))  # type: ignore[operator]
            return tokens.guide(conditional, unconditional, sampling.guidance)

        return of

    @torch.no_grad()
    def draw(self, contexts: Sequence[Context], sampling: Sampling, seeds: Sequence[int]) -> list[Action]:
        schedule = sde.sigmas(sampling.steps, sampling.shift)
        return [*sde.sample(self.velocity(contexts, sampling), sde.start(seeds, SHAPE), schedule, sampling, seeds)]

    def logits(self, contexts: Sequence[Context]) -> Tensor:
        return self.network.speak(self.meanings(contexts)).view(-1, 3, WORDS)  # type: ignore[operator]

    @torch.no_grad()
    def write(self, contexts: Sequence[Context], sampling: Sampling, seeds: Sequence[int]) -> list[Tokens]:
        ids, logp = tokens.step(self.logits(contexts), sampling.temperature, u=tokens.uniforms(seeds, 3))
        return [sampled("text", i, p, None, sampling) for i, p in zip(ids, logp, strict=True)]

    def forward(
        self, contexts: Sequence[Context], actions: Sequence[Action], anchors: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        def score(kind: Kind, rows: list[int]) -> list[Tensor]:
            (form, modality, sampling), some = kind, pick(rows, contexts)
            its: list[Any] = pick(rows, actions)
            given = None if anchors is None else pick(rows, anchors)
            if modality == "text":
                logp = tokens.step(self.logits(some), sampling.temperature, ids=torch.stack([a.ids for a in its]))[1]
                return tokens.beside_divergence(list(logp), given)
            score = noising.score if form is Noised else sde.score
            return score(self.velocity(some, sampling), its, given, self.chunk)

        return in_kinds(list(map(kind_of, actions)), score)

    def anchors(self, contexts: Sequence[Context], actions: Sequence[Action]) -> list[Tensor]:
        if actions[0].modality == "text":
            return super().anchors(contexts, actions)
        of_states, drawings = noising.velocities if isinstance(actions[0], Noised) else sde.means, cast(Any, actions)
        with torch.no_grad():
            return of_states(self.velocity(contexts, actions[0].sampling), drawings, self.chunk)

    def select(self, actions: Sequence[Action], scoring: ScoringConfig, seed: int) -> list[Selected]:
        whole = super().select(actions, scoring, seed)
        if scoring.drawings == "noised":
            whole = noising.noised_alike(whole, seed)
        return [s if isinstance(s.action, Tokens) else selection.of_some_steps(s, scoring.rounds, seed) for s in whole]

    def decode(self, actions: Sequence[Action]) -> list[Any]:
        return [" ".join(map(str, a.ids.tolist())) if isinstance(a, Tokens) else picture(a.path[-1]) for a in actions]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.network.state_dict(), folder / "model.safetensors")


def latents(actions: Sequence[Action]) -> list[Latents]:
    return [action for action in actions if isinstance(action, Latents)]


def features(context: Context) -> Tensor:
    """Characters counted, and the mean of an own drawing."""
    found = torch.zeros(32)
    for part in context.parts:
        if isinstance(part, Latents):
            found += part.path[-1].mean()
        elif isinstance(part, str):
            for character in part:
                found[ord(character) % 32] += 1
    return found / 5


def picture(state: Tensor) -> Image.Image:
    pixels = ((state / 4 + 0.5).clamp(0, 1) * 255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def make() -> Sketcher:
    torch.manual_seed(0)
    return Sketcher(Sketch(), PolicyConfig("sketch"))


@pytest.fixture
def policy() -> Sketcher:
    return make()


def brightness(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    return [float(t.turns[0].action.path[-1].mean()) for t in trajectories]  # type: ignore[union-attr]


def write_items(path: Path) -> Path:
    rows = [{"id": f"{i}", "prompt": f"a thing of kind {i}", "qa_problem": "?", "qa_solution": "1"} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def configuration(items: Path, out: Path, **changes: Any) -> RunConfig:
    """A run of that model on the items; `changes` by section__field."""
    config = RunConfig(
        recipe="sketch",
        policy=PolicyConfig("sketch"),
        data=DataConfig(train=str(items), eval=str(items)),
        scenario=ScenarioConfig("t2i", group_size=4, image=GUIDED),
        rewards={"jpeg_compressible": 1.0},
        step=StepConfig(items=4, micro_batch_items=4),
        optim=OptimConfig(steps=3, learning_rate=1e-3),
        evaluation=EvalConfig(items=2),
        out=out,
        trackers=(),
    )
    for field, value in changes.items():
        section, _, inner = field.partition("__")
        value = replace(getattr(config, section), **{inner: value}) if inner else value
        config = replace(config, **{section: value})
    return config


def begin(config: RunConfig, resume: bool = False) -> Trainer:
    """A trainer that rewards the brightness of drawings."""
    trainer = Trainer(config, resume)
    trainer.rewards["jpeg_compressible"] = brightness
    return trainer


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trainer]:
    """Makes trainers of a fresh model by the name of their folder, with changes of the configuration."""
    items = write_items(tmp_path / "items.jsonl")
    monkeypatch.setattr("unison.training.trainer.load_policy", lambda config: make())
    return lambda name, resume=False, **changes: begin(configuration(items, tmp_path / name, **changes), resume)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def whole_and_resumed(start: Callable[..., Trainer], *settings: Any, **changes: Any) -> tuple[Trainer, Trainer]:
    """A run of four steps, and the same run cut short in its third step and gone on with; both are finished."""
    changes |= {"optim__steps": 4, "checkpoint_every": 2}
    whole = start("whole", *settings, **changes)
    whole.train()
    cut = start("cut", *settings, **changes)
    sample = cut.experience.sample

    def until_step_3(step: int, known: Set[str]) -> list[Trajectory]:
        if cut.step == 3:
            raise KeyboardInterrupt
        return sample(step, known)

    cut.experience.sample = until_step_3  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    resumed = start("cut", *settings, resume=True, **changes)
    resumed.train()
    return whole, resumed


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.policy.network.named_parameters()}


# -- the policy ------------------------------------------------------------------------------------------------------

CONTEXTS = [Context((text,)) for text in ("a red circle", "two blue squares and a ring", "a cat") for _ in range(2)]


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("noisy", [(), (0, 3)])
def test_replayed_log_probabilities_are_the_sampled_ones(policy: Sketcher, guidance: float, noisy: tuple[int, ...]):
    drawings = policy.draw(CONTEXTS, Sampling(steps=5, guidance=guidance, noisy_steps=noisy), range(6))
    replies = policy.write(CONTEXTS, Sampling(), range(6))
    mixed: list[Action] = [action for pair in zip(drawings, replies, strict=True) for action in pair]
    scored = policy([context for context in CONTEXTS for _ in range(2)], mixed)
    for action, logp in zip(mixed, scored, strict=True):
        torch.testing.assert_close(logp, action.logp, atol=1e-4, rtol=0)


def test_guidance_is_part_of_what_is_scored(policy: Sketcher):
    (drawing,) = policy.draw(CONTEXTS[:1], DRAWN, [0])
    (unguided,) = policy(CONTEXTS[:1], [replace(drawing, sampling=replace(DRAWN, guidance=1.0))])
    assert (unguided - drawing.logp).abs().max() > 1e-3


def test_swapping_two_items_swaps_their_drawings(policy: Sketcher):
    drawings = latents(policy.draw(CONTEXTS[1:3], DRAWN, [5, 6]))
    swapped = latents(policy.draw(CONTEXTS[2:0:-1], DRAWN, [6, 5]))
    for a, b in zip(drawings, reversed(swapped), strict=True):
        torch.testing.assert_close(a.path, b.path, atol=1e-5, rtol=1e-5)
    assert (drawings[0].path - drawings[1].path).abs().max() > 0.1


def test_the_divergence_of_drawings_is_that_of_their_transitions(policy: Sketcher):
    drawings = policy.draw(CONTEXTS, replace(DRAWN, noisy_steps=(0, 2)), range(6))
    policy.keep_reference()
    with torch.no_grad():
        for weight in policy.network.parameters():
            weight.add_(0.05)
    with policy.reference():
        anchors = policy.anchors(CONTEXTS, drawings)
    own = policy.anchors(CONTEXTS, drawings)
    for drawing, theirs, ours, (logp, kl) in zip(
        latents(drawings), anchors, own, policy(CONTEXTS, drawings, anchors), strict=True
    ):
        now, after = drawing.sigmas[:-1][drawing.mask], drawing.sigmas[1:][drawing.mask]
        std = sde.spread(now, after, float(drawing.sigmas[1]), "flow_grpo", torch.tensor(0.7))
        expected = ((ours - theirs) ** 2).mean((1, 2, 3)) / (2 * std**2)
        torch.testing.assert_close(kl[drawing.mask], expected, rtol=1e-4, atol=1e-8)
        assert not kl[~drawing.mask].any()
        torch.testing.assert_close(logp, policy(CONTEXTS[:1], [drawing])[0]) if drawing is drawings[0] else None


# -- the trainer -----------------------------------------------------------------------------------------------------


def test_the_first_ratio_is_exactly_one_where_batches_are_as_in_sampling(start: Callable[..., Trainer]):
    trainer = start("run", optim__steps=1)
    trainer.policy.chunk = 16  # type: ignore[assignment]
    row = metrics(trainer.train())[0]
    assert row["image/ratio"] == 1
    assert row["image/logp_difference"] == 0


def test_the_first_ratio_is_one_when_all_steps_are_scored_at_once(start: Callable[..., Trainer]):
    row = metrics(start("run", optim__steps=1).train())[0]
    assert row["image/ratio"] == pytest.approx(1, abs=1e-5)  # far below the clip range of 1e-4
    assert row["image/logp_difference"] < 1e-5


@pytest.mark.parametrize("changes", [{}, {"scenario__image": replace(GUIDED, noisy_steps=(0, 1))}])
def test_training_raises_what_is_rewarded(start: Callable[..., Trainer], changes: dict[str, Any]):
    rows = metrics(
        start("run", optim__steps=30, optim__learning_rate=3e-3, objective__image_clip=1e-2, **changes).train()
    )
    means = [row["reward/mean"] for row in rows]
    assert sum(means[-5:]) / 5 > sum(means[:5]) / 5 + 0.1


def test_micro_batches_leave_loss_and_gradient_unchanged(start: Callable[..., Trainer]):
    fields: dict[str, Any] = {"optim__steps": 2, "objective__image_kl_beta": 0.1, "optim__learning_rate": 1e-2}
    rows = [metrics(start(f"{size}", step__micro_batch_items=size, **fields).train()) for size in (1, 2, 4)]
    rows.append(metrics(start("images", step__micro_batch_images=3, **fields).train()))
    for row in rows[1:]:
        for step in range(2):
            assert row[step]["grad_norm"] == pytest.approx(rows[0][step]["grad_norm"], rel=1e-4)
            assert row[step]["loss"] == pytest.approx(rows[0][step]["loss"], abs=1e-5)
            assert row[step]["image/kl"] == pytest.approx(rows[0][step]["image/kl"], rel=1e-3, abs=1e-9)


def test_rollout_chunks_leave_the_step_unchanged(start: Callable[..., Trainer]):
    rows = [metrics(start(f"{size}", step__rollout_items=size, optim__steps=1).train())[0] for size in (0, 1)]
    assert rows[0]["reward/mean"] == pytest.approx(rows[1]["reward/mean"], abs=1e-5)
    assert rows[0]["grad_norm"] == pytest.approx(rows[1]["grad_norm"], rel=1e-3)


def test_equal_rewards_change_no_weight(start: Callable[..., Trainer]):
    trainer = start("run", optim__steps=1)
    trainer.rewards["jpeg_compressible"] = lambda ts, policy: [0.5] * len(ts)
    before = weights(trainer)
    row = metrics(trainer.train())[0]
    assert row["constant_step"] == 1
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())


@pytest.mark.parametrize("width", [0, 2])
def test_a_stopped_run_resumes_bit_for_bit(start: Callable[..., Trainer], width: int):
    fields: dict[str, Any] = {
        "objective__image_kl_beta": 0.01,
        "scenario__window": WindowConfig(width=width, every=1),
    }
    whole, resumed = whole_and_resumed(start, **fields)
    assert metrics(resumed.run) == metrics(whole.run)
    final = [load_file(t.run / "checkpoints" / "final" / "model.safetensors") for t in (whole, resumed)]
    assert all(torch.equal(final[0][name], final[1][name]) for name in final[0])


def test_divergence_is_zero_at_the_first_step_and_held_down_after(start: Callable[..., Trainer]):
    ends = []
    for beta in (1e-6, 10.0):
        rows = metrics(
            start(f"{beta}", optim__steps=6, objective__image_kl_beta=beta, optim__learning_rate=1e-2).train()
        )
        assert rows[0]["image/kl"] == pytest.approx(0, abs=1e-9)
        assert rows[1]["image/kl"] > 1e-6
        ends.append(rows[-1]["image/kl"])
    assert ends[1] < ends[0] / 2


def test_each_modality_has_its_own_divergence_weight(start: Callable[..., Trainer]):
    fields: dict[str, Any] = {"scenario__name": "self_improve", "optim__steps": 2, "optim__learning_rate": 1e-2}
    drawn = metrics(start("drawn", objective__image_kl_beta=0.1, **fields).train())
    written = metrics(start("written", objective__kl_beta=0.1, objective__image_kl_beta=0.0, **fields).train())
    assert drawn[1]["image/kl"] > 0
    assert drawn[1]["text/kl"] == 0
    assert written[1]["image/kl"] == 0
    assert written[1]["text/kl"] > 0


def test_each_modality_has_its_own_clip_range(start: Callable[..., Trainer]):
    fields: dict[str, Any] = {"scenario__name": "self_improve", "optim__steps": 1, "step__updates": 4}
    fields |= {"step__micro_batch_items": 1, "optim__learning_rate": 1e-3}
    narrow = metrics(start("narrow", objective__image_clip=1e-5, **fields).train())[0]
    wide = metrics(start("wide", **fields).train())[0]
    assert narrow["image/clip_fraction"] > 0.1
    assert narrow["text/clip_fraction"] == wide["image/clip_fraction"] == 0


def test_one_advantage_trains_words_and_drawings_at_rates_of_their_own(start: Callable[..., Trainer]):
    trainer = start(
        "run",
        scenario__name="self_improve",
        optim__steps=1,
        optim__part_learning_rates={"^speak": 1e-5, r"^paint\.": 1e-2},
    )
    before = weights(trainer)
    row = metrics(trainer.train())[0]
    moved = {name: (value - before[name]).abs().max().item() for name, value in weights(trainer).items()}
    assert row["learning_rate"] == pytest.approx(1e-3)
    assert moved["speak.weight"] == pytest.approx(1e-5, rel=0.1)  # Adam's first step is as long as its rate
    assert moved["paint.enter.weight"] == pytest.approx(1e-2, rel=0.1)
    assert moved["read.weight"] == pytest.approx(1e-3, rel=0.1)


def test_scoring_a_part_of_the_steps_leaves_the_gradient_unbiased(policy: Sketcher):
    drawings = policy.draw(CONTEXTS, DRAWN, range(6))
    advantages = torch.linspace(-1, 1, 6)

    def gradient(rounds: int, seed: int) -> Tensor:
        scored = policy.select(drawings, ScoringConfig(rounds=rounds), seed)
        logps = policy(CONTEXTS, [s.action for s in scored])
        loss = sum(a * (s.share * p).sum() for a, s, p in zip(advantages, scored, logps, strict=True))
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*policy.network.paint.parameters()])])  # type: ignore[union-attr,arg-type]

    whole, parts = gradient(0, 0), torch.stack([gradient(2, seed) for seed in range(200)])
    assert all(s.action.mask.sum() == 2 for s in policy.select(drawings, ScoringConfig(rounds=2), 0))
    error = (parts.mean(0) - whole).norm() / whole.norm()
    assert error < 3 * (parts.std(0) / 200**0.5).norm() / whole.norm()
    assert error < 0.2


def test_a_part_of_the_steps_is_trained_on_request(start: Callable[..., Trainer]):
    row = metrics(start("run", optim__steps=1, scoring__rounds=2, objective__image_kl_beta=0.1).train())[0]
    assert row["image/ratio"] == pytest.approx(1, abs=1e-5)
    assert row["image/grad_norm"] > 0


def test_deterministic_drawings_are_no_decisions(start: Callable[..., Trainer]):
    fields: dict[str, Any] = {"scenario__name": "self_improve", "scenario__image": replace(GUIDED, sde="ode")}
    row = metrics(start("run", optim__steps=1, **fields).train())[0]
    assert not any(name.startswith("image/ratio") for name in row)
    assert row["text/grad_norm"] > 0


def test_drawings_are_evaluated_without_noise_on_request(policy: Sketcher):
    seen: list[Sampling] = []
    draw = policy.draw

    def noting(contexts: Sequence[Context], sampling: Sampling, seeds: Sequence[int]) -> list[Action]:
        seen.append(sampling)
        return draw(contexts, sampling, seeds)

    policy.draw = noting  # type: ignore[method-assign]
    for noiseless in (False, True):
        evaluate(policy, [Item("x", prompt="a cat")], ScenarioConfig(image=GUIDED), EvalConfig(noiseless=noiseless))
    assert [sampling.sde for sampling in seen] == ["flow_grpo", "ode"]


# -- which steps are trained -----------------------------------------------------------------------------------------


def chosen(window: WindowConfig, step: int, steps: int = 6) -> tuple[int, ...]:
    config = ScenarioConfig(image=ImageSampling(steps=steps, noisy_steps=(5,)), window=window)
    return windowed(config, Seeds(0, step)).image.noisy_steps


def test_a_given_choice_stays() -> None:
    assert {chosen(WindowConfig(), step) for step in range(1, 9)} == {(5,)}


def test_a_sliding_window_moves_through_the_path_and_starts_over() -> None:
    window = WindowConfig(width=4, every=2)
    path = [(0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 1, 2, 3)]
    assert [chosen(window, step) for step in range(1, 9)] == [place for place in path for _ in range(2)]
    assert chosen(WindowConfig(width=6, every=1), 5) == (0, 1, 2, 3, 4, 5)


def test_siblings_and_groups_of_a_step_train_the_same_steps(start: Callable[..., Trainer]) -> None:
    trainer = start("run", scenario__window=WindowConfig(width=2, every=1))
    trained = []
    for trainer.step in (1, 2, 3, 4):  # the windows follow from it
        masks = {tuple(t.turns[0].action.mask.tolist()) for t in trainer.experience.sample(trainer.step)}
        assert len(masks) == 1
        trained.append(masks.pop())
    assert len(set(trained)) > 1
    assert all(sum(mask) == 2 for mask in trained)


# -- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, r"scenario\.image\.steps = 0.*at least 1"),
        ({"shift": 0.0}, r"scenario\.image\.shift = 0\.0.*above 0"),
        ({"sde": "ode", "shared_start": True}, r"shared_start = True.*siblings"),
        ({"noise_level": -0.1}, r"scenario\.image\.noise_level = -0\.1.*at least 0"),
        ({"noise_level": 1.2, "sde": "cps"}, r"noise_level = 1\.2.*between 0 and 1 for 'cps'"),
        ({"noisy_steps": (0, 5)}, r"scenario\.image\.noisy_steps = \(0, 5\).*from 0 to 4"),
        ({"noisy_steps": (1, 1)}, r"scenario\.image\.noisy_steps = \(1, 1\).*different"),
    ],
)
def test_denoising_that_cannot_work_is_said(start: Callable[..., Trainer], changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        start("run", scenario__image=replace(GUIDED, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenario__window": WindowConfig(width=6)}, r"scenario\.window\.width = 6.*steps = 5"),
        ({"scenario__window": WindowConfig(width=-1)}, r"scenario\.window\.width = -1.*at least 0"),
        ({"scenario__window": WindowConfig(width=2, every=0)}, r"scenario\.window\.every = 0.*at least 1"),
        ({"objective__image_clip": -1.0}, r"objective\.image_clip = -1\.0.*at least 0, or None"),
        ({"objective__image_kl_beta": -1.0}, r"objective\.image_kl_beta = -1\.0.*at least 0, or None"),
        ({"optim__part_learning_rates": {"paint": 0.0}}, r"part_learning_rates\['paint'\] = 0\.0.*policy\.frozen"),
        ({"optim__part_learning_rates": {"pain(t": 1.0}}, r"part_learning_rates.*'pain\(t'.*regular expression"),
        ({"optim__part_learning_rates": {"pant": 1.0}}, "'pant' is the first match of no trained parameter"),
    ],
)
def test_settings_that_cannot_work_are_said(start: Callable[..., Trainer], changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        start("run", **changes)


def test_the_first_pattern_that_matches_decides_the_rate() -> None:
    named = list(make().network.named_parameters())
    groups = parameter_groups(named, OptimConfig(part_learning_rates={"enter": 1.0, "paint|speak": 2.0}))
    assert [(group["lr"], len(group["params"])) for group in groups] == [(1e-6, 2), (1.0, 2), (2.0, 4)]
    everything = parameter_groups(named, OptimConfig(part_learning_rates={".": 1.0}))
    assert [(group["lr"], len(group["params"])) for group in everything] == [(1.0, 8)]


def test_settings_of_drawings_default_to_those_of_all_decisions() -> None:
    common = ObjectiveConfig(clip_low=0.1, clip_high=0.3, kl_beta=0.01)
    assert common.of("text") == common
    assert common.of("image") == common
    own = replace(common, image_clip=1e-4, image_kl_beta=4e-3)
    assert own.of("text") == own
    assert [getattr(own.of("image"), name) for name in ("clip_low", "clip_high", "kl_beta")] == [1e-4, 1e-4, 4e-3]
    assert has_penalty(own)
    assert not has_penalty(replace(own, kl_beta=0.0, image_kl_beta=0.0))


def test_denoising_settings_are_saved_and_read_back(start: Callable[..., Trainer]) -> None:
    image = replace(GUIDED, sde="cps", noisy_steps=(0, 3))
    config = start("run", scenario__image=image, scenario__window=WindowConfig(width=2)).config
    assert from_json(to_json(config)) == replace(config, out=config.out)
