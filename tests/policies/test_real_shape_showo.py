"""The published Show-o at 512 pixels at reduced width: 1,024 image tokens, 8,192 codes, the real vocabulary and ids."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unison.config import EvalConfig, OptimConfig, PolicyConfig, ScoringConfig, StepConfig
from unison.policies.showo import magvit
from unison.policies.showo.network import PhiSizes, ShowOConfig, ShowONetwork
from unison.policies.showo.policy import ShowO
from unison.pretrain.corpus import CorpusConfig
from unison.pretrain.showo import build_tokenizer
from unison.recipes import corl
from unison.training.trainer import Trainer
from unison.types import ImageSampling, TextSampling

ONE = (1, 1, 1, 1, 1)


@pytest.fixture(scope="module")
def reduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with the published pattern and every width cut down."""
    torch.manual_seed(0)
    sizes = ShowOConfig(False, 50295, 8192, 1024, phi=PhiSizes(64, 128, 2, 2))
    painter = replace(
        magvit.PUBLISHED,
        channels=8,
        groups=4,
        encoder_multipliers=ONE,
        decoder_multipliers=ONE,
        encoder_blocks=ONE,
        decoder_blocks=ONE,
    )
    folder = tmp_path_factory.mktemp("reduced")
    policy = ShowO(ShowONetwork(sizes, painter).eval(), build_tokenizer(CorpusConfig()), PolicyConfig("reduced"))
    assert policy.layout.mask == 58497
    assert policy.side == 512
    policy.save(folder)
    return folder


@pytest.mark.slow
def test_two_steps_of_reinforcement_run_on_the_published_pattern(reduced: Path, tmp_path: Path) -> None:
    recipe = corl.tiny_unified()
    config = replace(
        recipe,
        policy=PolicyConfig(str(reduced)),
        scenario=replace(
            recipe.scenario, group_size=2, text=TextSampling(max_tokens=8), image=ImageSampling(guidance=6.0, rounds=10)
        ),
        step=StepConfig(items=2, micro_batch_items=1),
        scoring=ScoringConfig(rounds=4),
        optim=OptimConfig(steps=2, learning_rate=1e-3),
        rewards={"matching": 1.0, "format": 0.8},
        evaluation=EvalConfig(items=2, batch_size=2),
        out=tmp_path / "run",
        trackers=(),
    )
    run = Trainer(config).train()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert rows[0]["image/ratio"] == pytest.approx(1, abs=1e-4)
    assert rows[0]["image/logp_difference"] < 1e-4
    assert rows[1]["image/grad_norm"] > 0
    assert json.loads((run / "checkpoints" / "final" / "config.json").read_text())["num_vq_tokens"] == 1024
