"""Merging checkpoints: the algebra of the methods, whole folders, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import JanusForConditionalGeneration, JanusProcessor

from tests.policies.damage import Damage, change_text, change_weights, remove
from unison.cli import main as cli
from unison.config import PolicyConfig
from unison.policies import load_policy
from unison.policies.janus.policy import Janus
from unison.policies.merge import Method, gaussian, linear, merge, slerp, ties
from unison.types import Context, Sampling

HALF = (0.5, 0.5)
Combine = Callable[[Sequence[Tensor], Sequence[float]], Tensor]


def noise(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


BASE = noise(0, 64, 8)
A, B = BASE + noise(1, 64, 8, scale=0.1), BASE + noise(2, 64, 8, scale=0.1)
METHODS: dict[str, Combine] = {
    "linear": linear,
    "slerp": slerp,
    "ties": lambda tensors, weights: ties(tensors, weights, BASE, 1.0),
    "gaussian": lambda tensors, weights: gaussian(tensors, weights, BASE),
}

# -- algebra ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_model_merged_with_itself_is_itself(method: str):
    merged = METHODS[method]([A, A], (0.3, 0.7))
    if method == "ties":  # base + (A - base) rounds
        assert torch.allclose(merged, A, atol=1e-6)
    else:
        assert torch.equal(merged, A)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_models_does_not_matter(method: str):
    one, two = METHODS[method]([A, B], (0.3, 0.7)), METHODS[method]([B, A], (0.7, 0.3))
    assert torch.allclose(one, two, atol=1e-6)
    assert not torch.allclose(one, METHODS[method]([A, B], (0.7, 0.3)), atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_a_scalar_and_an_unchanged_tensor_can_be_merged(method: str):
    x = torch.tensor(2.0)
    merged = {
        "ties": lambda: ties([x, x], HALF, x, 0.5),
        "gaussian": lambda: gaussian([x, x], HALF, x),
    }.get(method, lambda: METHODS[method]([x, x], HALF))()
    assert torch.equal(merged, x)
    assert torch.equal(METHODS[method]([BASE, BASE], HALF), BASE)


def test_linear_is_the_weighted_mean():
    assert torch.allclose(linear([A, B], HALF), (A + B) / 2)
    assert torch.allclose(linear([A, B, BASE], (0.2, 0.5, 0.3)), 0.2 * A + 0.5 * B + 0.3 * BASE)


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
def test_slerp_walks_the_arc_at_even_speed_and_keeps_the_norm(t: float):
    x, y = torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 2.0, 0.0])
    angle = torch.tensor(t * torch.pi / 2)
    expected = 2 * torch.stack([angle.cos(), angle.sin(), torch.tensor(0.0)])
    assert torch.allclose(slerp([x, y], (1 - t, t)), expected, atol=1e-6)
    u, v = A / A.norm(), noise(3, 64, 8) / noise(3, 64, 8).norm()
    assert slerp([u, v], (1 - t, t)).norm() == pytest.approx(1, abs=1e-6)
    assert linear([u, v], HALF).norm() < 0.8


def test_slerp_of_close_models_is_the_straight_line_from_either_side_of_the_threshold():
    for angle in (0.9e-3, 1.1e-3):
        y = torch.tensor([torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))])
        x = torch.tensor([1.0, 0.0])
        assert torch.allclose(slerp([x, y], (0.7, 0.3)), linear([x, y], (0.7, 0.3)), atol=1e-6)


def test_slerp_is_the_straight_line_where_a_direction_is_undefined():
    assert torch.equal(slerp([A, torch.zeros_like(A)], HALF), A / 2)
    assert torch.allclose(slerp([A, -A], (0.75, 0.25)), A / 2)


def test_ties_by_hand():
    base = torch.ones(3)
    one, two = base + torch.tensor([4.0, -2.0, 0.1]), base + torch.tensor([2.0, 3.0, -0.2])
    # density 2/3 keeps (4, -2, 0) and (2, 3, 0); the signs are +, +, none; means of what agrees are 3, 3, 0
    assert torch.allclose(ties([one, two], HALF, base, 2 / 3), base + torch.tensor([3.0, 3.0, 0.0]))
    # with weights 0.8 and 0.2 the middle entry's sign is that of 0.8 * -2 + 0.2 * 3 < 0, where model one stands alone
    assert torch.allclose(ties([one, two], (0.8, 0.2), base, 2 / 3), base + torch.tensor([3.6, -2.0, 0.0]))


def test_gaussian_by_hand():
    base, one, two = torch.zeros(2), torch.tensor([3.0, 1.0]), torch.tensor([0.0, 2.0])
    # one: variance 5, coefficients 1 - exp(-9/10), 1 - exp(-1/10); two: variance 2, coefficients 0, 1 - exp(-1)
    c, d = 1 - torch.exp(torch.tensor(-0.1)), 1 - torch.exp(torch.tensor(-1.0))
    assert torch.allclose(gaussian([one, two], HALF, base), torch.stack([torch.tensor(3.0), (c * 1 + d * 2) / (c + d)]))


def test_gaussian_lies_between_the_models():
    merged = gaussian([A, B], (0.3, 0.7), BASE)
    assert (merged >= torch.minimum(A, B) - 1e-6).all()
    assert (merged <= torch.maximum(A, B) + 1e-6).all()


def test_gaussian_takes_a_tensor_from_the_one_model_that_changed_it():
    assert torch.allclose(gaussian([A, BASE], (0.1, 0.9), BASE), A, atol=1e-6)


def test_gaussian_weighs_a_models_changes_by_its_own_scale():
    """A model that moved ten times as far gets no more say: its coefficients are the same."""
    far = BASE + 10 * (B - BASE)
    share = (gaussian([A, B], HALF, BASE) - A) / (B - A)
    share_of_far = (gaussian([A, far], HALF, BASE) - A) / (far - A)
    assert torch.allclose(share, share_of_far, atol=1e-3)


# -- checkpoints ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two checkpoints that differ a little from the tiny one, in their language model alone."""
    weights = load_file(checkpoint / "model.safetensors")
    folders = []
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp(f"tuned{seed}") / "model"
        shutil.copytree(checkpoint, folder)
        generator = torch.Generator().manual_seed(seed)
        moved = {
            key: value + 0.01 * torch.randn(value.shape, generator=generator) if "language_model" in key else value
            for key, value in weights.items()
        }
        save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
        folders.append(str(folder))
    return folders[0], folders[1]


@pytest.mark.parametrize("method", METHODS)
def test_a_merged_checkpoint_loads_in_plain_transformers_and_draws(
    method: Method, tuned: tuple[str, str], checkpoint: Path, tmp_path: Path
):
    base = str(checkpoint) if method in ("ties", "gaussian") else None
    out = merge(tuned, tmp_path / "merged", method, base=base, density=1.0)
    network, info = cast(Any, JanusForConditionalGeneration).from_pretrained(out, output_loading_info=True)
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    one, two, merged = (load_file(Path(path) / "model.safetensors") for path in (*tuned, str(out)))
    key = "model.language_model.layers.0.mlp.up_proj.weight"
    assert torch.equal(network.state_dict()[key], merged[key])
    assert 0.1 < (merged[key] - one[key]).norm() / (two[key] - one[key]).norm() < 0.9
    assert torch.equal(merged["model.vision_model.post_layernorm.bias"], one["model.vision_model.post_layernorm.bias"])
    assert JanusProcessor.from_pretrained(out).use_default_system_prompt is False
    policy = load_policy(PolicyConfig(str(out)))
    drawing = policy.decode(policy.draw([Context(("a red circle",))], Sampling(guidance=2.0), [0]))[0]
    assert drawing.size == (48, 48)


def test_a_checkpoint_merged_with_itself_is_the_same_files(checkpoint: Path, tmp_path: Path):
    out = merge([str(checkpoint)] * 2, tmp_path / "merged", "gaussian", base=str(checkpoint))
    ours, theirs = load_file(out / "model.safetensors"), load_file(checkpoint / "model.safetensors")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert {file.name for file in out.iterdir()} == {file.name for file in checkpoint.iterdir()} | {"merge.json"}
    assert json.loads((out / "merge.json").read_text())["weights"] == [0.5, 0.5]


def test_types_and_shards_are_those_of_the_first_checkpoint(tuned: tuple[str, str], tmp_path: Path):
    network = JanusForConditionalGeneration.from_pretrained(tuned[0], dtype=torch.bfloat16)
    sharded = tmp_path / "sharded"
    shutil.copytree(tuned[0], sharded)
    (sharded / "model.safetensors").unlink()
    network.save_pretrained(sharded, max_shard_size="500KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    out = merge([str(sharded), tuned[1]], tmp_path / "merged", "linear")
    assert {f.name for f in out.glob("*.safetensors")} == {f.name for f in sharded.glob("*.safetensors")}
    merged = cast(Any, load_policy(PolicyConfig(str(out), dtype="bfloat16"))).network.state_dict()
    other = load_file(f"{tuned[1]}/model.safetensors")["lm_head.weight"]
    expected = (network.state_dict()["lm_head.weight"].float() + other) / 2
    assert merged["lm_head.weight"].dtype == torch.bfloat16
    assert torch.allclose(merged["lm_head.weight"].float(), expected, rtol=2**-7, atol=1e-6)  # a unit of bfloat16


def test_the_command_merges_and_says_where(
    tuned: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "merged"
    words = ["merge", *tuned, "--out", str(out), "--method", "linear", "--weights", "0.25", "0.75"]
    monkeypatch.setattr("sys.argv", ["unison", *words])
    cli.main()
    assert capsys.readouterr().out.strip() == str(out)
    one, two, merged = (load_file(Path(path) / "model.safetensors") for path in (*tuned, out))
    key = "model.language_model.norm.weight"
    assert torch.allclose(merged[key], 0.25 * one[key] + 0.75 * two[key], atol=1e-6)


# -- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "settings", "message"),
    [
        (1, {"method": "linear"}, "--method linear merges two or more checkpoints"),
        (3, {"method": "slerp"}, "--method slerp merges two checkpoints"),
        (2, {"method": "ties"}, "--base = None: --method ties needs --base"),
        (2, {"method": "gaussian"}, "--base = None: --method gaussian needs --base"),
        (2, {"method": "slerp", "base": "x"}, "--base = 'x': --method slerp uses no --base"),
        (2, {"method": "linear", "weights": (1.0,)}, r"--weights = \[1\.0\]: give one share for each of the 2 models"),
        (2, {"method": "linear", "weights": (0.5, 0.6)}, r"--weights = \[0\.5, 0\.6\]: .* they sum to 1\.1"),
        (2, {"method": "linear", "weights": (1.5, -0.5)}, r"--weights = .* must be above 0"),
        (2, {"method": "ties", "base": "x", "density": 0.0}, r"--density = 0\.0: must be above 0 and at most 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(count: int, settings: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        merge(["a"] * count, tmp_path / "out", **settings)


def changed(checkpoint: str, folder: Path, change: Damage) -> str:
    shutil.copytree(checkpoint, folder)
    change(folder)
    return str(folder)


MISFITS: dict[str, tuple[Damage, str]] = {
    "key missing": (change_weights(lambda w: w.pop("lm_head.weight")), "1 tensors are in one alone, first 'lm_head"),
    "key added": (
        change_weights(lambda w: w.update(foo=torch.zeros(2))),
        "1 tensors are in one alone, first 'foo' in ",
    ),
    "shape": (
        change_weights(lambda w: w.update({"lm_head.weight": torch.zeros(2, 2)})),
        r"'lm_head\.weight' has shape \[\d+, \d+\] against \[2, 2\]",
    ),
    "family": (
        change_text("config.json", lambda _: '{"model_type": "llama"}'),
        "model_type 'janus' against 'llama'",
    ),
    "no weights": (remove("model.safetensors"), r"holds no \*\.safetensors"),
    "no config": (remove("config.json"), r"cannot be read as a checkpoint .*config\.json"),
    "truncated": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"12345678"),
        "cannot be read as a checkpoint",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
@pytest.mark.parametrize("place", ["model", "base"])
def test_checkpoints_that_do_not_fit_together_are_refused_by_name(
    name: str, place: str, tuned: tuple[str, str], tmp_path: Path
):
    change, message = MISFITS[name]
    other = changed(tuned[1], tmp_path / "other", change)
    second, base = (other, tuned[0]) if place == "model" else (tuned[1], other)
    with pytest.raises(ValueError, match=message) as caught:
        merge([tuned[0], second], tmp_path / "out", "gaussian", base=base)
    assert str(tmp_path / "other") in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_integers_that_differ_are_refused_and_equal_ones_kept(tuned: tuple[str, str], tmp_path: Path):
    one = changed(tuned[0], tmp_path / "one", change_weights(lambda w: w.update(steps=torch.tensor([1, 2]))))
    two = changed(tuned[1], tmp_path / "two", change_weights(lambda w: w.update(steps=torch.tensor([1, 3]))))
    merged = merge([one, one], tmp_path / "same", "linear")
    assert load_file(merged / "model.safetensors")["steps"].tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"steps holds torch\.int64 and differs between the models"):
        merge([one, two], tmp_path / "out", "linear")


def test_an_existing_folder_is_not_overwritten(tuned: tuple[str, str], tmp_path: Path):
    with pytest.raises(ValueError, match="exists: name a new folder"):
        merge(tuned, tmp_path, "linear")


@pytest.mark.parametrize("path", ["./nowhere", "nowhere", "/nowhere/at/all", "owner/name"])
def test_a_checkpoint_that_is_not_there_is_refused(path: str, tuned: tuple[str, str], tmp_path: Path):
    with pytest.raises(ValueError, match=f"models = '{path}': no such folder"):
        merge([tuned[0], path], tmp_path / "out", "linear")
    with pytest.raises(ValueError, match=f"--base = '{path}': no such folder"):
        merge(tuned, tmp_path / "out", "ties", base=path)


def test_what_a_broken_merge_left_behind_does_not_stop_the_next(tuned: tuple[str, str], tmp_path: Path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "junk.json").write_text("{}")
    assert not (merge(tuned, tmp_path / "out", "linear") / "junk.json").exists()


def test_the_merged_policy_lies_between_its_parents(tuned: tuple[str, str], tmp_path: Path):
    """Halfway between two close models, the log-probabilities are close to the mean of theirs."""
    out = merge(tuned, tmp_path / "out", "linear")
    one, two, half = (cast(Janus, load_policy(PolicyConfig(str(path)))) for path in (*tuned, out))
    contexts = [Context(("a red circle",))] * 4
    actions = one.draw(contexts, Sampling(), range(4))
    with torch.no_grad():
        a, b, m = (torch.cat(list(policy(contexts, actions))) for policy in (one, two, half))
    assert (m - (a + b) / 2).abs().mean() < 0.25 * (a - b).abs().mean()
