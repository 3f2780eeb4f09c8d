"""Janus in DeepSeek's own layout: a synthetic checkpoint with the published key names, at reduced width."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import JanusForConditionalGeneration

from tests.policies.damage import Damage, change_json, change_text, change_weights, remove
from unison.cli import main as cli
from unison.config import PolicyConfig
from unison.policies import load_policy
from unison.policies.janus import deepseek
from unison.policies.janus.policy import Janus
from unison.policies.janus.shape import PUBLISHED, JanusShape
from unison.pretrain.corpus import CorpusConfig
from unison.pretrain.janus import build_tokenizer
from unison.types import Context, Sampling

PICTURE = Image.effect_noise((50, 40), 60).convert("RGB")


def config_json(shape: JanusShape, tower: str, image_tokenizer: str) -> dict[str, Any]:
    """The config.json of a published upload, with the sizes of a shape."""
    width = shape.width
    aligner = {"depth": 2, "n_embed": width, "projector_type": "mlp_gelu"}
    return {
        "aligner_config": {
            "cls": "MlpProjector",
            "model_type": "aligner",
            "params": aligner | {"input_dim": shape.vision_width},
        },
        "architectures": ["MultiModalityCausalLM"],
        "gen_aligner_config": {
            "cls": "MlpProjector",
            "model_type": "gen_aligner",
            "params": aligner | {"input_dim": 8},
        },
        "gen_head_config": {
            "cls": "vision_head",
            "model_type": "gen_head",
            "params": {"image_token_embed": width, "image_token_size": 16384, "n_embed": width},
        },
        "gen_vision_config": {
            "cls": image_tokenizer,
            "model_type": "gen_vision",
            "params": {"image_token_size": 16384, "n_embed": 8},
        },
        "language_config": {
            "hidden_size": width,
            "intermediate_size": shape.feed_forward,
            "max_position_embeddings": 16384,
            "model_type": "llama",
            "num_attention_heads": shape.heads,
            "num_hidden_layers": shape.layers,
            "num_key_value_heads": shape.heads,
            "torch_dtype": "bfloat16",
            "_attn_implementation": "flash_attention_2",
            "vocab_size": shape.vocabulary,
        },
        "model_type": "multi_modality",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.33.1",
        "vision_config": {
            "cls": "CLIPVisionTower",
            "model_type": "vision",
            "params": {"image_size": 384, "model_name": tower, "select_feature": "same", "select_layer": -1},
        },
    }


def original_layout(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse mapping, part by part: the weights of `transformers` under DeepSeek's names."""
    found: dict[str, Tensor] = {}
    for key, value in weights.items():
        part, _, rest = key.removeprefix("model.").partition(".")
        if part == "vision_model":
            found |= _vision(rest, value, weights)
        elif part in ("aligner", "generation_aligner"):
            name = rest.replace("fc1", "layers.0").replace("hidden_layers.0", "layers.2")
            found[f"{'gen_' if part != 'aligner' else ''}aligner.{name}"] = value
        elif part == "vqmodel":
            found[f"gen_vision_model.{_vq(rest)}"] = value
        elif part == "generation_embeddings":
            found["gen_embed.weight"] = value
        elif part == "generation_head":
            found[f"gen_head.{rest.replace('proj_out', 'output_mlp_projector')}"] = value
        elif part == "language_model":
            found[f"language_model.model.{rest}"] = value
        else:
            found[f"language_model.{key}"] = value
    width = weights["model.vision_model.post_layernorm.bias"].shape[0]
    return found | {
        "vision_model.vision_tower.attn_pool.latent": torch.zeros(1, 1, width),
        "vision_model.vision_tower.attn_pool.kv.weight": torch.zeros(2 * width, width),
        "vision_model.vision_tower.attn_pool.mlp.fc1.bias": torch.zeros(4 * width),
        "gen_vision_model.quantize.codebook_used": torch.zeros(65536),
    }


def _vision(rest: str, value: Tensor, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    tower = "vision_model.vision_tower."
    if rest.startswith("embeddings.position"):
        return {f"{tower}pos_embed": value[None]}
    if ".self_attn.k_proj" in rest or ".self_attn.v_proj" in rest:
        return {}
    if ".self_attn.q_proj" in rest:
        parts = [weights["model.vision_model." + rest.replace("q_proj", f"{name}_proj")] for name in "qkv"]
        return {
            tower + rest.replace("encoder.layers", "blocks").replace("self_attn.q_proj", "attn.qkv"): torch.cat(parts)
        }
    for ours, theirs in (
        ("embeddings.patch_embedding", "patch_embed.proj"),
        ("encoder.layers", "blocks"),
        ("self_attn.projection_layer", "attn.proj"),
        ("post_layernorm", "norm"),
        ("layer_norm", "norm"),
    ):
        rest = rest.replace(ours, theirs)
    return {tower + rest: value}


def _vq(rest: str) -> str:
    rest = re.sub(r"^(encoder\.down|decoder\.up)\.(\d+)\.block", r"\1.\2.res", rest)
    rest = rest.replace("encoder.down.", "encoder.conv_blocks.").replace("decoder.up.", "decoder.conv_blocks.")
    for name, number in (("block_1", 0), ("attn_1", 1), ("block_2", 2)):
        rest = rest.replace(f"mid.{name}", f"mid.{number}")
    return rest


@pytest.fixture(scope="module")
def network() -> JanusForConditionalGeneration:
    """The published pattern with every width cut down, in `transformers`."""
    tokenizer = build_tokenizer(CorpusConfig())
    torch.manual_seed(0)
    config: Any = _shape(len(tokenizer)).config()
    config.image_token_id = tokenizer.image_token_id
    made = JanusForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():  # biases and norms too: none may stand for another
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return made


def _shape(vocabulary: int) -> JanusShape:
    return JanusShape(64, 2, 2, 128, vocabulary, 32, 2, 2, vq_base_channels=32)


@pytest.fixture(scope="module", autouse=True)
def _reduced_parts():
    """The parts that config.json only names, at reduced width."""
    with pytest.MonkeyPatch.context() as patch:
        tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        patch.setitem(deepseek.TOWERS, "reduced", deepseek.TOWERS["siglip_large_patch16_384"] | tower)
        patch.setitem(deepseek.IMAGE_TOKENIZERS, "reduced", deepseek.IMAGE_TOKENIZERS["VQ-16"] | {"base_channels": 32})
        yield


@pytest.fixture(scope="module")
def original(network: JanusForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network as a checkpoint in DeepSeek's layout, which no test may change."""
    folder = tmp_path_factory.mktemp("original") / "model"
    folder.mkdir()
    tokenizer = build_tokenizer(CorpusConfig())
    cast(Any, tokenizer).backend_tokenizer.save(str(folder / "tokenizer.json"))
    shape = _shape(len(tokenizer))
    files = {
        "config.json": config_json(shape, "reduced", "reduced"),
        "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True},
        "preprocessor_config.json": {"image_processor_type": "VLMImageProcessor", "image_size": 384, "min_size": 14},
        "processor_config.json": {"processor_class": "VLChatProcessor", "num_image_tokens": 576},
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values))
    weights = {key: value.contiguous() for key, value in original_layout(network.state_dict()).items()}
    halves = list(weights)[::2], list(weights)[1::2]
    for number, keys in enumerate(halves, 1):
        save_file({key: weights[key] for key in keys}, folder / f"model-0000{number}-of-00002.safetensors")
    return folder


@pytest.fixture(scope="module")
def policy(original: Path) -> Janus:
    return cast(Janus, load_policy(PolicyConfig(str(original))))


# -- loading -------------------------------------------------------------------------------------------------------


def test_every_weight_arrives_and_the_logits_are_equal(policy: Janus, network: JanusForConditionalGeneration):
    ours, theirs = policy.network.state_dict(), network.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    processor: Any = policy.processor
    text = "<|User|>: <image_placeholder>\nWhat is it?\n\n<|Assistant|>:"
    inputs = processor(text=text, images=PICTURE, return_tensors="pt")
    assert (inputs["input_ids"] == network.config.image_token_id).sum() == 576
    with torch.no_grad():
        assert torch.allclose(policy.network(**inputs).logits, network(**inputs).logits, atol=1e-5)
        ids = torch.randint(16384, (1, 576), generator=torch.Generator().manual_seed(0))
        hidden = torch.randn(1, 3, 64)
        decoded = network.model.vqmodel.decode(ids)  # type: ignore[arg-type]
        assert torch.allclose(policy.vq.decode(ids), decoded, atol=1e-5)
        head, other = policy.network.model.generation_head, network.model.generation_head
        assert torch.allclose(head(hidden), other(hidden), atol=1e-5)


def test_the_configuration_is_that_of_the_same_shape_in_transformers():
    shape = PUBLISHED["deepseek-community/Janus-Pro-1B"]
    wanted = shape.config().to_dict()
    raw = config_json(shape, "siglip_large_patch16_384", "VQ-16")
    assert _read(raw).to_dict() == wanted


def _read(raw: dict[str, Any]) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(raw))
        return deepseek.read_config(Path(folder))


def test_sizes_that_config_json_leaves_out_are_llamas():
    """Janus-Pro-7B names only what differs from the defaults."""
    raw = config_json(PUBLISHED["deepseek-community/Janus-Pro-1B"], "siglip_large_patch16_384", "VQ-16")
    raw["language_config"] = {"model_type": "llama", "num_hidden_layers": 30, "vocab_size": 102400}
    text = _read(raw).text_config
    assert (text.hidden_size, text.intermediate_size, text.num_attention_heads) == (4096, 11008, 32)
    assert text.num_key_value_heads == 32


def test_the_mapping_is_complete_both_ways_at_published_size():
    with torch.device("meta"):
        config = PUBLISHED["deepseek-community/Janus-Pro-1B"].config()
        network = JanusForConditionalGeneration(config)
        theirs = original_layout(network.state_dict())
    report = deepseek.compare(theirs, network)
    assert not report
    assert len(report.dropped) == 4
    made = [name for key, value in theirs.items() for name in deepseek.convert(key, value)]
    assert sorted(made) == sorted(network.state_dict())  # each one once
    assert "vision_model.vision_tower.blocks.23.attn.qkv.weight" in theirs
    assert "gen_vision_model.decoder.conv_blocks.4.res.2.norm1.weight" in theirs


def test_the_policy_has_the_familys_chat_and_tokens(policy: Janus):
    assert policy.processor.use_default_system_prompt is False
    assert policy.chat(Context(("Hello",))) == "<|User|>: Hello\n\n<|Assistant|>:"
    tokenizer = policy.tokenizer
    assert tokenizer("Hello")["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer("Hello")["input_ids"][1:] == build_tokenizer(CorpusConfig()).encode("Hello")[1:]
    assert tokenizer.pad_token == "<｜▁pad▁｜>"
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}) == 3
    assert policy.network.config.image_token_id == tokenizer.image_token_id


@pytest.mark.slow
def test_the_policy_writes_draws_scores_and_saves_in_transformers_format(policy: Janus, tmp_path: Path):
    contexts = [Context((PICTURE, "What is it?")), Context(("a red circle",))]
    actions = [
        *policy.write(contexts[:1], Sampling(max_tokens=4), [0]),
        *policy.draw(contexts[1:], Sampling(guidance=5.0), [1]),
    ]
    with torch.no_grad():
        for logp, action in zip(policy(contexts, actions), actions, strict=True):
            assert (logp - action.logp).abs().max() < 1e-4
    assert policy.decode(actions[1:])[0].size == (384, 384)
    policy.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "janus"
    again = cast(Janus, load_policy(PolicyConfig(str(tmp_path))))
    ours, theirs = policy.network.state_dict(), again.network.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    with torch.no_grad():
        assert (again(contexts, actions)[1] - actions[1].logp).abs().max() < 1e-4


def test_sizes_of_pictures_are_cut_to_whole_pixels(policy: Janus):
    """333 / 500 of 384 pixels is 255.7: the last column of the picture is the border's grey."""
    pixels = policy._pixels(Image.new("RGB", (333, 500), "white"))[0, 0]
    assert (pixels[0] == 1).sum() == 255


def test_the_pads_row_is_trained(policy: Janus):
    assert cast(Any, policy.network.config).text_config.pad_token_id == policy.tokenizer.pad_token_id
    assert cast(Any, policy.network.get_input_embeddings()).padding_idx is None


def test_weights_are_loaded_in_the_configured_type(original: Path):
    policy = load_policy(PolicyConfig(str(original), dtype="bfloat16"))
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.bfloat16}


def test_a_dry_run_reads_the_layout(
    original: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = ["unison", "train", "corl/tiny", "--policy.path", str(original), "--dry-run"]
    monkeypatch.setattr("sys.argv", words)
    cli.main()
    assert "memory of one process" in capsys.readouterr().out


# -- mistakes ------------------------------------------------------------------------------------------------------

LAST = "model-00002-of-00002.safetensors"


def reshape(key: str, *shape: int) -> Callable[[dict[str, Tensor]], object]:
    return lambda weights: weights.update({key: torch.zeros(shape)}) if key in weights else None


VISION = "vision_model.vision_tower."
DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing key": (
        change_weights(lambda w: w.pop("gen_head.output_mlp_projector.bias", None)),
        r"config\.json:\n  missing: model\.generation_head\.proj_out\.bias$",
    ),
    "missing fused key": (
        change_weights(lambda w: w.pop(f"{VISION}blocks.1.attn.qkv.bias", None)),
        r"missing: model\.vision_model\.encoder\.layers\.1\.self_attn\.k_proj\.bias\n.*q_proj\.bias\n.*v_proj\.bias$",
    ),
    "unexpected key": (change_weights(lambda w: w.update(foo=torch.zeros(2))), r"unexpected: foo\b"),
    "unexpected layer": (
        change_weights(lambda w: w.update({"language_model.model.layers.9.input_layernorm.weight": torch.zeros(64)})),
        r"unexpected: language_model\.model\.layers\.9\.input_layernorm\.weight",
    ),
    "transformers' key": (
        change_weights(lambda w: w.update({"gen_vision_model.encoder.down.0.block.0.norm1.bias": torch.zeros(32)})),
        r"unexpected: gen_vision_model\.encoder\.down\.0",
    ),
    "wrong shape": (
        change_weights(reshape("gen_embed.weight", 16384, 4)),
        r"misshapen: gen_embed\.weight gives \[16384, 4\], the configuration wants \[16384, 8\]$",
    ),
    "wrong fused shape": (
        change_weights(reshape(f"{VISION}blocks.0.attn.qkv.weight", 90, 32)),
        r"misshapen: .*attn\.qkv\.weight gives \[30, 32\], the configuration wants \[32, 32\]$",
    ),
    "missing shard": (remove(LAST), r"(?s)missing: .*missing: .*missing: "),
    "truncated shard": (
        lambda folder: ((folder / LAST).unlink(), (folder / LAST).write_bytes(b"1234567890")),
        "policy.path",
    ),
    "no tokenizer": (remove("tokenizer.json"), r"cannot read tokenizer\.json"),
    "no pad token": (
        change_text("tokenizer.json", lambda text: text.replace("<｜▁pad▁｜>", "<pad>")),
        r"tokenizer\.json has no '<｜▁pad▁｜>' \(pad_token\)",
    ),
    "no section": (change_json("config.json", lambda c: c.pop("vision_config")), r"config\.json has no vision_config"),
    "no parameter": (
        change_json("config.json", lambda c: c["gen_head_config"]["params"].pop("n_embed")),
        r"has no gen_head_config\.params\.n_embed; it has image_token_embed, image_token_size",
    ),
    "other tower": (
        change_json(
            "config.json", lambda c: c["vision_config"]["params"].update(model_name="siglip_large_patch14_384")
        ),
        r"vision_config\.params\.model_name = 'siglip_large_patch14_384' is unknown; did you mean 'siglip_large",
    ),
    "other image tokenizer": (
        change_json("config.json", lambda c: c["gen_vision_config"].update(cls="VQ-8")),
        r"gen_vision_config\.cls = 'VQ-8' is unknown; did you mean 'VQ-16'",
    ),
    "other aligner": (
        change_json("config.json", lambda c: c["aligner_config"]["params"].update(depth=3)),
        r"aligner_config\.params\.depth = 3: only 2 can be converted",
    ),
    "other layer of the tower": (
        change_json("config.json", lambda c: c["vision_config"]["params"].update(select_layer=-2)),
        r"vision_config\.params\.select_layer = -2: only -1 can be converted",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_refused_key_by_key(original: Path, tmp_path: Path, name: str):
    damage, message = DAMAGES[name]
    folder = linked(original, tmp_path)
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load_policy(PolicyConfig(str(folder)))
    assert str(caught.value).startswith(f"policy.path = '{folder}': ")


def linked(original: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in original.iterdir():
        (folder / file.name).hardlink_to(file)
    return folder


def test_pickled_weights_are_refused_with_a_command_that_converts_them(
    original: Path, network: JanusForConditionalGeneration, tmp_path: Path
):
    folder = linked(original, tmp_path)
    for file in folder.glob("*.safetensors"):
        name = file.name.replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        torch.save(load_file(file), folder / name)
        file.unlink()
    with pytest.raises(ValueError, match=r"no \*\.safetensors.*pytorch_model") as caught:
        load_policy(PolicyConfig(str(folder)))
    code = re.search(r'python -c "(.*)" <folder>', str(caught.value))
    assert code
    subprocess.run([sys.executable, "-c", code[1], str(folder)], check=True)
    loaded = cast(Janus, load_policy(PolicyConfig(str(folder)))).network.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in network.state_dict().items())


def test_an_unreachable_hub_checkpoint_is_one_error():
    with pytest.raises(ValueError, match=r"policy\.path = 'deepseek-ai/none'"):
        deepseek.load("deepseek-ai/none", PolicyConfig("deepseek-ai/none"))
