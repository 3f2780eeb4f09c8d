"""The published Janus-Pro shape pattern at reduced width: 576 image tokens, 16,384 codes, the real processor."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import JanusForConditionalGeneration, JanusProcessor
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from unison.config import EvalConfig, OptimConfig, PolicyConfig, RunConfig
from unison.policies.shapes import PUBLISHED, JanusShape
from unison.recipes import corl, unirl
from unison.train import Trainer
from unison.types import Sampling
from unison.world.pretrain import CHAT_TEMPLATE, CorpusConfig, build_tokenizer


@pytest.fixture(scope="module")
def reduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with the published pattern and every width cut down."""
    tokenizer = build_tokenizer(CorpusConfig())
    shape = JanusShape(64, 2, 2, 128, len(tokenizer), 32, 1, 2, vq_base_channels=32)
    config: Any = shape.config()
    config.image_token_id = tokenizer.image_token_id
    torch.manual_seed(0)
    network = JanusForConditionalGeneration(config)
    images = JanusImageProcessorPil(size={"height": 384, "width": 384}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor = JanusProcessor(images, tokenizer, chat_template=CHAT_TEMPLATE, use_default_system_prompt=True)
    folder = tmp_path_factory.mktemp("reduced")
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_the_published_shape_has_the_published_size():
    with torch.device("meta"):
        config: Any = PUBLISHED["deepseek-community/Janus-Pro-1B"].config()
        network = JanusForConditionalGeneration(config)
    assert config.vq_config.num_patches**2 == 576
    assert config.vq_config.num_embeddings == 16384
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(2.1e9, rel=0.03)
    assert sum(p.numel() for p in network.model.language_model.parameters()) == pytest.approx(1.5e9, rel=0.05)


@pytest.mark.slow
def test_one_step_of_the_real_recipe_runs_saves_and_reloads_in_plain_transformers(reduced: Path, tmp_path: Path):
    recipe = corl.janus_pro_1b_unified()
    config = dataclasses.replace(
        recipe,
        policy=PolicyConfig(str(reduced), frozen=recipe.policy.frozen),
        data=dataclasses.replace(recipe.data, train="world", questions="mixed"),
        scenario=dataclasses.replace(recipe.scenario, group_size=2, text=Sampling(max_tokens=8)),
        rewards={"world": 1.0, "accuracy": 0.8, "format": 0.8},
        optim=OptimConfig(steps=1, items_per_step=2, micro_batch_items=1, learning_rate=1e-3),
        evaluation=EvalConfig(items=2, batch_size=2, gallery=1),
        out=tmp_path / "run",
        trackers=(),
    )
    trainer = Trainer(config)
    assert trainer.policy.processor.use_default_system_prompt is False  # type: ignore[union-attr]
    run = trainer.train()
    row = json.loads((run / "metrics.jsonl").read_text())
    assert row["image/length"] == 576
    assert row["image/logp_difference"] < 1e-4
    assert row["image/ratio"] == pytest.approx(1, abs=1e-4)

    plain = JanusForConditionalGeneration.from_pretrained(run / "checkpoints" / "final").eval()
    ids = torch.randint(10, 400, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(plain(input_ids=ids).logits, trainer.policy.network(input_ids=ids).logits)
    assert JanusProcessor.from_pretrained(run / "checkpoints" / "final").num_image_tokens == 576


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [unirl.janus_pro_1b_grpo(), unirl.janus_pro_1b_sft()], ids=lambda r: r.recipe)
def test_a_step_of_self_improvement_runs_at_the_published_pattern(recipe: RunConfig, reduced: Path, tmp_path: Path):
    group = min(2, recipe.scenario.group_size)
    config = dataclasses.replace(
        recipe,
        policy=PolicyConfig(str(reduced), frozen=recipe.policy.frozen),
        scenario=dataclasses.replace(recipe.scenario, group_size=group, text=Sampling(max_tokens=8)),
        optim=OptimConfig(steps=1, items_per_step=2, micro_batch_items=1, learning_rate=1e-3),
        evaluation=EvalConfig(items=2, batch_size=2, gallery=1, own_drawings=True),
        out=tmp_path / "run",
        trackers=(),
    )
    row = json.loads((Trainer(config).train() / "metrics.jsonl").read_text())
    assert row["skipped_step"] == 0
    if recipe.scenario.name == "self_improve":
        assert row["image/length"] == 576
        assert row["image/logp_difference"] < 1e-4
    else:
        assert row["text/grad_norm"] > 0
