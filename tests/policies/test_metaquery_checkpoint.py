"""MetaQuery checkpoints: one folder of standard parts, joined from published layouts; every weight accounted for."""

from __future__ import annotations

import copy
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from tests.policies.damage import change_json, change_weights
from unison.cli import main as cli
from unison.config import JoinConfig, PolicyConfig
from unison.policies import load_policy
from unison.policies.decisions import sde
from unison.policies.metaquery import diffusion
from unison.policies.metaquery.network import BRIDGE, MetaQueryNetwork, Parts, join
from unison.policies.metaquery.policy import MetaQuery
from unison.types import Context, Latents, Sampling
from unison.world.render import render
from unison.world.scene import sample

PICTURE = render(sample(random.Random(0), "position", "train")[1])
CONTEXTS = [Context(("a red circle",)), Context((PICTURE, "make it blue"))]
DRAWING = Sampling(guidance=3.0, source_guidance=1.5, steps=3)
TEXT = Sampling(max_tokens=8)
SIZES = ["--queries", "6", "--layers", "1", "--heads", "2", "--feed-forward", "64", "--source-side", "48"]


@pytest.fixture(scope="module")
def folder(metaquery: MetaQuery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved checkpoint, which no test may change."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny-metaquery"
    metaquery.save(path)
    return path


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return shutil.copytree(folder, tmp_path / "broken")


def same(one: MetaQuery, two: MetaQuery) -> bool:
    """Whether two policies draw, edit and write alike."""
    drawings = [cast(Latents, p.draw(CONTEXTS, DRAWING, [1, 2])[1]).path for p in (one, two)]
    replies = [p.decode(p.write(CONTEXTS, TEXT, [3, 4])) for p in (one, two)]
    return bool((drawings[0] - drawings[1]).abs().max() < 1e-5) and replies[0] == replies[1]


def load(path: Path, **fields: Any) -> MetaQuery:
    return cast(MetaQuery, load_policy(PolicyConfig(str(path), **fields)))


# -- saving and loading --------------------------------------------------------------------------------------------


def test_weights_can_be_held_in_half_precision(folder: Path) -> None:
    policy = load(folder, dtype="bfloat16", compute_dtype="bfloat16")
    assert policy.network.qwen.dtype == policy.network.transformer.dtype == torch.bfloat16
    assert policy.network.vae.dtype == torch.float32
    actions = [*policy.draw(CONTEXTS, DRAWING, [1, 2]), *policy.write(CONTEXTS, TEXT, [3, 4])]
    assert all(torch.isfinite(action.logp).all() for action in actions)
    scores = policy([*CONTEXTS, *CONTEXTS], actions)
    assert max((s - a.logp).abs().max() for s, a in zip(scores, actions, strict=True)) < 0.2


def test_tokenizer_and_scheduler_are_read_by_their_libraries(metaquery: MetaQuery, folder: Path) -> None:
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(folder / "language_model").get_vocab() == metaquery.tokenizer.get_vocab()
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(10)
    assert (scheduler.sigmas - sde.sigmas(10, 3.0)).abs().max() < 1e-6


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        del state[name]

    return change


def put(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.update({name: value})


EXTRA = torch.zeros(2)
MISTAKES = {
    "a weight of the bridge is missing": (BRIDGE, drop("queries.edit"), "missing: queries.edit"),
    "a weight of the bridge is left over": (BRIDGE, put("extra", EXTRA), "unexpected: extra"),
    "a weight of the bridge has another shape": (BRIDGE, put("project.bias", EXTRA), "misshapen: project.bias"),
    "a weight of the language model is missing": (
        "language_model/model.safetensors",
        drop("model.norm.weight"),
        "language_model.*missing keys.*norm.weight",
    ),
    "a weight of the language model is left over": (
        "language_model/model.safetensors",
        put("extra", EXTRA),
        "language_model.*unexpected keys.*extra",
    ),
    "a weight of the transformer is missing": (
        "transformer/diffusion_pytorch_model.safetensors",
        drop("proj_out.bias"),
        "transformer.*proj_out.bias",
    ),
    "a weight of the transformer is left over": (
        "transformer/diffusion_pytorch_model.safetensors",
        put("extra", EXTRA),
        "transformer.*unexpected keys.*extra",
    ),
    "a transformer of an unknown class": (
        "transformer/config.json",
        put("_class_name", "UNet2DModel"),
        "transformer.*UNet2DModel.*SanaTransformer2DModel",
    ),
    "an autoencoder of an unknown class": ("vae/config.json", put("_class_name", "VQModel"), "vae.*AutoencoderDC"),
    "a language model of another kind": (
        "language_model/config.json",
        put("model_type", "llama"),
        "'llama' is not qwen2_5_vl",
    ),
    "no size of the bridge": ("config.json", drop("queries"), "queries"),
    "heads that do not fit": ("config.json", put("heads", 7), "heads = 7.*64"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_checkpoint_that_is_not_whole_is_refused(broken: Path, case: str) -> None:
    name, change, said = MISTAKES[case]
    damage = change_json(name, change) if name.endswith(".json") else change_weights(change, name)
    damage(broken)
    with pytest.raises(ValueError, match=f"(?s)policy.path = .*{said}"):
        load(broken)


@pytest.mark.parametrize(
    "name", [BRIDGE, "vae", "scheduler", "language_model/tokenizer.json", "language_model/preprocessor_config.json"]
)
def test_a_missing_part_is_named(broken: Path, name: str) -> None:
    shutil.rmtree(broken / name) if (broken / name).is_dir() else (broken / name).unlink()
    with pytest.raises(ValueError, match=name.partition("/")[0]):
        load(broken)


# -- joining -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A language model and a diffusion pipeline in the layouts of the published ones."""
    language = shutil.copytree(folder / "language_model", tmp_path_factory.mktemp("published") / "qwen")
    pipeline = language.parent / "sana"
    for part in ("transformer", "vae"):
        shutil.copytree(folder / part, pipeline / part)
    options: Any = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    DPMSolverMultistepScheduler(**options).save_pretrained(pipeline / "scheduler")
    return language, pipeline


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["unison", *words])
    cli.main()


def test_join_makes_a_checkpoint_of_a_language_model_and_a_diffusion_model(
    metaquery: MetaQuery, published: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    language, pipeline = map(str, published)
    out = tmp_path / "joint"
    run(monkeypatch, "join", language, pipeline, "--out", str(out), "--dtype", "float32", *SIZES)
    joint = load(out)
    assert joint.network.config.side == 6  # the transformer's own
    assert joint.network.scheduler.config.shift == 3.0
    for part in ("qwen", "transformer", "vae"):
        one, two = (getattr(p.network, part).state_dict() for p in (joint, metaquery))
        assert all(torch.equal(one[name], two[name]) for name in two)
    assert joint.network.bridge.source_out.weight.eq(0).all()
    questions = [Context((PICTURE, "what is it?"))]  # the system prompt is part of a joint checkpoint's chats
    assert joint.chat.system_prompt == "You are a helpful assistant."
    assert joint.write(questions, TEXT, [0])[0].logp.isfinite().all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--source-side", "50"], "source_side = 50: must be a multiple of 16"),
        (["--heads", "3"], "heads = 3: must divide .* 64"),
    ],
)
def test_join_refuses_sizes_that_do_not_fit(
    published: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    import re

    language, pipeline = map(str, published)
    with pytest.raises(SystemExit):
        run(monkeypatch, "join", language, pipeline, "--out", str(tmp_path / "joint"), *SIZES, *options)
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "joint").exists()


def test_join_refuses_models_of_other_kinds(published: tuple[Path, Path], tmp_path: Path) -> None:
    language, pipeline = published
    with pytest.raises(ValueError, match=r"has no config\.json"):
        join(str(pipeline), str(pipeline), JoinConfig(), torch.float32)
    with pytest.raises(ValueError, match=r"has no transformer/config\.json"):
        join(str(language), str(language), JoinConfig(), torch.float32)
    distilled = shutil.copytree(pipeline, tmp_path / "sprint")
    change_json("transformer/config.json", put("guidance_embeds", True))(distilled)
    with pytest.raises(ValueError, match=r"missing keys.*guidance_embedder"):
        join(str(language), str(distilled), JoinConfig(), torch.float32)


# -- other experts -------------------------------------------------------------------------------------------------


def sd3() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=6,
        patch_size=2,
        in_channels=8,
        out_channels=8,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        caption_projection_dim=32,
        pooled_projection_dim=24,
        pos_embed_max_size=6,
    )


def flux(**fields: Any) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=32,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        pooled_projection_dim=24,
        axes_dims_rope=(4, 6, 6),
        **fields,
    )


def with_expert(parts: Parts, transformer: Any, vae: Any = None) -> MetaQuery:
    network = copy.deepcopy(parts.network)
    other = MetaQueryNetwork(network.config, network.qwen, transformer, vae or network.vae, network.scheduler)
    with torch.no_grad():
        for name, weight in other.bridge.named_parameters():
            weight.normal_(0, 1.0 if "queries" in name else 0.2)
        for weight in transformer.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return MetaQuery(other.eval(), parts.tokenizer, parts.image_processor, PolicyConfig("tiny"))


@pytest.mark.parametrize("make", [sd3, flux])
def test_another_diffusion_transformer_can_be_the_expert(
    tiny_metaquery: Parts, tmp_path: Path, make: Callable[[], Any]
) -> None:
    torch.manual_seed(0)
    policy = with_expert(tiny_metaquery, make())
    contexts = [*CONTEXTS, Context(("two blue squares",))]
    drawings = policy.draw(contexts, DRAWING, [0, 1, 2])
    scores = policy(contexts, drawings)
    assert max((s - a.logp).abs().max() for s, a in zip(scores, drawings, strict=True)) < 1e-4
    other = policy([CONTEXTS[1], *contexts[1:]], drawings)
    assert (other[0] - drawings[0].logp).abs().max() > 1e-3  # it does listen
    torch.stack(scores).sum().backward()
    for name in ("queries.draw", "queries.edit", "source_out.weight", "pool.weight", "project.weight"):
        assert policy.network.bridge.get_parameter(name).grad is not None, name
    policy.save(tmp_path / "saved")
    assert same(policy, load(tmp_path / "saved"))


def test_the_place_of_a_square_in_a_packed_latent_is_its_own() -> None:
    x = torch.arange(2 * 8 * 4 * 6, dtype=torch.float32).view(2, 8, 4, 6)
    packed = diffusion.to_squares(x)
    assert packed.shape == (2, 6, 32)
    assert torch.equal(diffusion.from_squares(packed, 2), x)
    assert torch.equal(packed[0, 4], x[0, :, 2:4, 2:4].flatten())
    assert diffusion.places(2, 3, torch.device("cpu"))[4].tolist() == [0, 1, 1]


def test_an_autoencoder_with_a_shift_gives_latents_about_zero(tiny_metaquery: Parts) -> None:
    torch.manual_seed(0)
    blocks: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (8, 8, 8, 8),
    }
    options: dict[str, Any] = {"scaling_factor": 1.5, "shift_factor": 0.25, "latent_channels": 8, "norm_num_groups": 4}
    vae: Any = AutoencoderKL(**blocks, **options)
    pixels = torch.rand(1, 3, 48, 48) * 2 - 1
    latents = diffusion.to_latents(vae, pixels)
    raw = vae.encode(pixels).latent_dist.mode()
    assert (latents - (raw - 0.25) * 1.5).abs().max() < 1e-6
    assert (diffusion.to_pixels(vae, latents) - vae.decode(raw).sample).abs().max() < 1e-5
    assert diffusion.ratio(vae) == 8
    policy = with_expert(tiny_metaquery, sd3(), vae)
    assert policy.decode(policy.draw(CONTEXTS[:1], DRAWING, [0]))[0].size == (48, 48)


def test_experts_that_do_not_fit_are_refused(tiny_metaquery: Parts) -> None:
    network = tiny_metaquery.network
    with pytest.raises(ValueError, match="guidance-distilled"):
        with_expert(tiny_metaquery, flux(guidance_embeds=True))
    other: Any = AutoencoderKL(latent_channels=4, norm_num_groups=4, block_out_channels=(8,))
    with pytest.raises(ValueError, match="8 latent channels, the autoencoder has 4"):
        MetaQueryNetwork(network.config, network.qwen, network.transformer, other, network.scheduler)
    with pytest.raises(ValueError, match="known classes: SanaTransformer2DModel"):
        MetaQueryNetwork(network.config, network.qwen, network.qwen, network.vae, network.scheduler)
