"""MAGVIT-v2 against the published tokenizer: names of weights, numbers; and the same class at toy size."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from unison.policies.showo.magvit import PUBLISHED, Magvit, MagvitConfig

LATENT, DECODED = 1e-5, 2e-5  # float32 against float64 gives 2.5e-6 and 4e-6 upstream
TINY = MagvitConfig(
    channels=8,
    groups=4,
    bits=5,
    encoder_multipliers=(1, 1, 2),
    encoder_blocks=(1, 1, 1),
    decoder_multipliers=(1, 2, 2),
    decoder_blocks=(1, 1, 1),
)


@pytest.fixture(scope="module")
def facts(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "magvitv2.json").read_text())


@pytest.fixture(scope="module")
def numbers(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "magvitv2.safetensors")


@pytest.fixture(scope="module")
def published(golden: Path, fill_golden: Callable[[nn.Module], None]) -> Iterator[Magvit]:
    """The real architecture with the golden weights."""
    network = Magvit(PUBLISHED)
    fill_golden(network)
    with torch.no_grad():
        yield network


@pytest.fixture(scope="module")
def tiny() -> Magvit:
    torch.manual_seed(0)
    return Magvit(TINY)


# -- the published network -----------------------------------------------------------------------------------------


def test_the_weights_have_the_published_names_and_shapes(golden: Path) -> None:
    published = json.loads((golden / "showo_keys.json").read_text())["magvitv2"]
    with torch.device("meta"):
        network = Magvit(PUBLISHED)
    ours = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    assert ours == {name: entry["shape"] for name, entry in published["keys"].items()}
    assert sum(p.numel() for p in network.parameters()) == published["num_parameters"]


def test_the_golden_weights_are_reproduced(published: Magvit, facts: dict[str, Any]) -> None:
    weights = dict(published.named_parameters())
    assert facts["fill_check"]
    for name, check in facts["fill_check"].items():
        ours = weights[name].detach()
        assert ours.flatten()[:4].tolist() == pytest.approx(check["first4"], abs=1e-6), name
        assert ours.double().square().sum().item() == pytest.approx(check["sumsq"], rel=1e-5), name


@pytest.mark.parametrize("case", ["main", "rect", "tiny"])
def test_images_become_the_published_tokens(published: Magvit, numbers: dict[str, Tensor], case: str) -> None:
    image = numbers[f"{case}.image"]
    latents = published.latents(image)
    assert (latents - numbers[f"{case}.z"]).abs().max() < LATENT
    tokens = published.encode(image)
    assert torch.equal(tokens, numbers[f"{case}.tokens"])
    assert torch.equal(published.quantize.signs(tokens).mT, numbers[f"{case}.z_q"].flatten(2).round())


@pytest.mark.parametrize(("case", "shape"), [("main", None), ("rect", (2, 6)), ("tiny", None), ("random", (4, 4))])
def test_tokens_become_the_published_images(
    published: Magvit, numbers: dict[str, Tensor], case: str, shape: tuple[int, int] | None
) -> None:
    decoded = published.decode(numbers[f"{case}.tokens"], shape)
    assert (decoded - numbers[f"{case}.decoded"]).abs().max() < DECODED


@pytest.mark.parametrize("case", ["main", "rect"])
def test_every_stage_gives_the_published_numbers(
    published: Magvit, numbers: dict[str, Tensor], facts: dict[str, Any], case: str
) -> None:
    """Locates an error that the tests above only detect."""
    probes = facts["cases"][case]["probes"]
    seen: dict[str, Tensor] = {}
    hooks = []
    for name in probes:
        module: Any = published.get_submodule(name.removesuffix(".last"))
        module = module[-1] if name.endswith(".last") else module
        hooks.append(module.register_forward_hook(lambda _, __, y, name=name: seen.__setitem__(name, y)))
    published.decode(published.encode(numbers[f"{case}.image"]), tuple(facts["cases"][case]["latent_hw"]))
    for hook in hooks:
        hook.remove()
    for name, probe in probes.items():
        assert list(seen[name].shape) == probe["shape"], name
        assert seen[name].flatten()[:8].tolist() == pytest.approx(probe["first8"], rel=1e-5, abs=2e-5), name
        assert seen[name].double().std().item() == pytest.approx(probe["std"], rel=1e-4), name


def test_the_code_table_is_the_published_one(published: Magvit, facts: dict[str, Any]) -> None:
    table = facts["codebook"]
    assert list(published.quantize.embedding.shape) == table["embedding_shape"]
    assert published.quantize.power_vals.tolist() == table["power_vals"]
    for row, signs in table["first_rows"].items():
        assert published.quantize.embedding[int(row)].tolist() == signs


# -- at any size ---------------------------------------------------------------------------------------------------


def test_channel_0_is_the_most_significant_bit_and_zero_is_negative(tiny: Magvit) -> None:
    latents = torch.tensor([0.3, 0.0, -0.2, 1e-6, -5.0]).view(1, 5, 1, 1)
    assert tiny.quantize.tokens(latents).item() == 0b10010


def test_every_token_survives_its_signs(tiny: Magvit) -> None:
    tokens = torch.arange(32).view(1, -1)
    signs = tiny.quantize.signs(tokens)  # [1, 32, 5]
    assert torch.equal(tiny.quantize.tokens(signs.mT[..., None])[..., 0], tokens)


def test_wide_pictures_keep_their_shape(tiny: Magvit) -> None:
    tokens = tiny.encode(torch.rand(2, 3, 8, 16) * 2 - 1)
    assert tokens.shape == (2, 8)
    assert tiny.decode(tokens, (2, 4)).shape == (2, 3, 8, 16)


def test_what_does_not_fit_is_refused(tiny: Magvit) -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        tiny.encode(torch.zeros(1, 3, 8, 6))
    with pytest.raises(ValueError, match="8 tokens do not fill 2 x 2"):
        tiny.decode(torch.zeros(1, 8, dtype=torch.long))
    with pytest.raises(ValueError, match="per level"):
        replace(TINY, encoder_blocks=(1, 1))
