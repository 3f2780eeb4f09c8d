"""The published Janus-Pro shape pattern at reduced width: 576 image tokens, 16,384 codes, the real processor."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import JanusForConditionalGeneration, JanusProcessor

from benchmarks import judges
from benchmarks.speed.real_size import Args, configured, write_random_janus
from unison.config import EvalConfig, OptimConfig, PolicyConfig, RunConfig, StepConfig
from unison.policies.janus.shape import PUBLISHED, JanusShape
from unison.pretrain.corpus import CorpusConfig
from unison.pretrain.janus import build_tokenizer
from unison.recipes import corl, unirl
from unison.training.trainer import Trainer
from unison.types import TASKS, TextSampling
from unison.world.render import render
from unison.world.scene import ask, sample

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def reduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with the published pattern and every width cut down."""
    shape = JanusShape(64, 2, 2, 128, len(build_tokenizer(CorpusConfig())), 32, 1, 2, vq_base_channels=32)
    folder = tmp_path_factory.mktemp("reduced")
    torch.manual_seed(0)
    write_random_janus(shape.config(), folder)
    return folder


def test_the_published_shape_has_the_published_size():
    with torch.device("meta"):
        config: Any = PUBLISHED["deepseek-community/Janus-Pro-1B"].config()
        network = JanusForConditionalGeneration(config)
    assert config.vq_config.num_patches**2 == 576
    assert config.vq_config.num_embeddings == 16384
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(2.1e9, rel=0.03)
    assert sum(p.numel() for p in network.model.language_model.parameters()) == pytest.approx(1.5e9, rel=0.05)


def test_a_recipe_of_the_real_size_is_of_one_run_on_a_published_janus(tmp_path: Path):
    config = configured(Args("corl/janus-pro-1b-unified", tmp_path, items=2))
    assert config.step.items == 2
    assert config.rewards == {"world": 1.0, "accuracy": 1.0}
    for other in ("corl/janus-pro-1b", "unirl/show-o-512-grpo", "corl/tiny-unified"):
        with pytest.raises(ValueError, match=f"recipe '{other}': must be of one run, on one of deepseek-community"):
            configured(Args(other, tmp_path))


@pytest.mark.slow
def test_one_step_of_the_real_recipe_runs_saves_and_reloads_in_plain_transformers(reduced: Path, tmp_path: Path):
    recipe = corl.janus_pro_1b_unified()
    config = dataclasses.replace(
        recipe,
        policy=PolicyConfig(str(reduced), frozen=recipe.policy.frozen),
        data=dataclasses.replace(recipe.data, train="world", questions="mixed"),
        scenario=dataclasses.replace(recipe.scenario, group_size=2, text=TextSampling(max_tokens=8)),
        rewards={"world": 1.0, "accuracy": 0.8, "format": 0.8},
        step=StepConfig(items=2, micro_batch_items=1),
        optim=OptimConfig(steps=1, learning_rate=1e-3),
        evaluation=EvalConfig(items=2, batch_size=2),
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
        assert torch.allclose(plain(input_ids=ids).logits, trainer.policy.network(input_ids=ids).logits, atol=1e-5)
    assert JanusProcessor.from_pretrained(run / "checkpoints" / "final").num_image_tokens == 576


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [unirl.janus_pro_1b_grpo(), unirl.janus_pro_1b_sft()], ids=lambda r: r.recipe)
def test_a_step_of_self_improvement_runs_at_the_published_pattern(recipe: RunConfig, reduced: Path, tmp_path: Path):
    group = min(2, recipe.scenario.group_size)
    config = dataclasses.replace(
        recipe,
        policy=PolicyConfig(str(reduced), frozen=recipe.policy.frozen),
        scenario=dataclasses.replace(recipe.scenario, group_size=group, text=TextSampling(max_tokens=8)),
        step=StepConfig(items=2, micro_batch_items=1),
        optim=OptimConfig(steps=1, learning_rate=1e-3),
        evaluation=EvalConfig(items=2, batch_size=2, own_drawings=True),
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


# -- the recipe as a user runs it ----------------------------------------------------------------------------------


def rows_of_the_real_columns(path: Path, count: int = 32) -> Path:
    """A table as `mm-vl/x2x_rft_22k` has them, of the world's scenes: half multiple choice, half open-ended."""
    rng, rows = random.Random(0), []
    for i in range(count):
        description, scene = sample(rng, TASKS[i % len(TASKS)], "train")
        question, choice, png = ask(rng, description, scene), i % 2 == 1, io.BytesIO()
        render(scene).resize((256, 256)).save(png, "PNG")
        row = {"prompt": description.prompt, "real_image": {"bytes": png.getvalue(), "path": f"{i}.png"}}
        row |= {"qa_problem": question.asked(choice)}
        row |= {"qa_solution": f"<answer> {question.letter if choice else question.answer} </answer>"}
        rows.append(row | {"qa_type": "multiple_choice" if choice else "open_ended"})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def unison(*words: object) -> str:
    command = [sys.executable, "-m", "unison", *map(str, words)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_published_recipe_trains_on_a_table_evaluates_exports_and_is_done(reduced: Path, tmp_path: Path):
    folders = judges.build(tmp_path / "judges", judges.JudgeSize(width=32, layers=1, image=48))
    caption, out = judges.spec("blip_bertscore", folders), tmp_path / "run"
    words: dict[str, object] = {
        "--policy.path": reduced,
        "--policy.compute-dtype": "float32",
        "--data": rows_of_the_real_columns(tmp_path / "x2x_rft.parquet"),
        "--rewards.blip-bertscore": 0,
        f"--rewards.{caption}": 0.5,
        "--scenario.group-size": 2,
        "--scenario.text.max-tokens": 12,
        "--optim.steps": 2,
        "--step.items": 1,
        "--optim.learning-rate": 1e-3,
        "--evaluation.items": 1,
        "--out": out,
    }
    measured = ("--evaluation.rewards", "lpips_vgg", caption)
    unison("train", "corl/janus-pro-1b-unified", *(word for pair in words.items() for word in pair), *measured)
    lines = (out / "metrics.jsonl").read_text()
    first, second = map(json.loads, lines.splitlines())
    assert (first["step"], second["step"]) == (1, 2)
    for name in ("lpips_vgg", caption, "matching", "accuracy", "format"):
        assert 0 <= first[f"reward/{name}/mean"] <= 1
    assert first["image/length"] == 576
    assert first["image/logp_difference"] < 1e-4
    assert {path.stem for path in (out / "eval").glob("*.json")} == {"000000", "000002"}

    final = out / "checkpoints" / "final"
    plain = JanusForConditionalGeneration.from_pretrained(final).state_dict()
    before = JanusForConditionalGeneration.from_pretrained(reduced).state_dict()
    changed = {name for name, weight in plain.items() if not torch.equal(weight, before[name])}
    assert changed
    assert all("language_model" in name or "lm_head" in name for name in changed)
    assert JanusProcessor.from_pretrained(final).num_image_tokens == 576

    written = (final / "model.safetensors").stat().st_mtime_ns
    assert "nothing to do" in unison("train", "--resume", out)
    assert (out / "metrics.jsonl").read_text() == lines
    assert (final / "model.safetensors").stat().st_mtime_ns == written
