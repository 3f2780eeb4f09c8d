"""Show-o's network, sequences, attention and masked decoding against numbers of the published program.

The weights are filled by a rule (see the fixture `fill_golden`), so the files hold only inputs and outputs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig

from benchmarks.speed import showo_published as upstream
from unison.policies.decisions import selection, tokens
from unison.policies.decoding import causal, masked
from unison.policies.showo import shape
from unison.policies.showo.layout import SPECIAL, Layout
from unison.policies.showo.magvit import PUBLISHED, MagvitConfig
from unison.policies.showo.network import PhiSizes, ShowOConfig, ShowONetwork, projector, read_config
from unison.types import Sampling

LOGITS, GUIDED = 1e-5, 1e-4  # float32 against float64 gives 1.7e-6 upstream, and guidance multiplies errors
CODES, N = 64, 16
LAYOUT = Layout(words=200, codes=CODES, image_tokens=N, text_tokens=12, eot=161)
CONFIG = ShowOConfig(
    w_clip_vit=False,
    llm_vocab_size=200,
    codebook_size=CODES,
    num_vq_tokens=N,
    max_seq_length=12,
    phi=PhiSizes(64, 128, 2, 4, max_position_embeddings=128),
)
PAINTER = MagvitConfig(8, 4, 6, (1, 1), (1, 1), (1, 1), (1, 1))  # takes no part here
VARIANTS = ("showo_demo", "showo_demo_512x512", "showo_demo_w_clip_vit", "showo_demo_w_clip_vit_512x512")
TRACES = ("gen", "gen_noguid", "gen_inpaint", "gen_hot")


@pytest.fixture(scope="module")
def facts(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "showo_tiny.json").read_text())


@pytest.fixture(scope="module")
def numbers(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "showo_tiny.safetensors")


@pytest.fixture(scope="module")
def network(fill_golden: Callable[[nn.Module], None]) -> Iterator[ShowONetwork]:
    network = ShowONetwork(CONFIG, PAINTER).eval()
    fill_golden(network)
    with torch.no_grad():
        yield network


# -- the vocabulary and the weights --------------------------------------------------------------------------------


def test_ids_are_the_published_ones(golden: Path, facts: dict[str, Any]) -> None:
    published = json.loads((golden / "showo_keys.json").read_text())["special_tokens_real"]
    real = Layout(words=50295, codes=8192, image_tokens=256, text_tokens=128, eot=50256)
    assert {name: real.special(name) for name in SPECIAL} == published["ids"]
    tiny = facts["special_tokens"]
    assert list(SPECIAL) == tiny["order_of_assignment"]
    for layout, ids in ((real, published), (LAYOUT, tiny)):
        assert layout.first_image == ids["first_image_token_id"]
        assert layout.mask == ids["mask_token_id"]
        assert layout.mask + 1 == ids["vocab_size"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_real_weights_have_the_published_names_and_shapes(golden: Path, variant: str, tmp_path: Path) -> None:
    published = json.loads((golden / "showo_keys.json").read_text())
    assert {*published["variants"]} == {*VARIANTS}
    entry = published["variants"][variant]
    (tmp_path / "config.json").write_text(
        json.dumps({"_class_name": "Showo"} | entry["registered_config_of_a_freshly_built_module"])
    )
    config = read_config(tmp_path)
    with torch.device("meta"):
        network = ShowONetwork(
            config, PUBLISHED, CLIPVisionConfig(hidden_size=1024, num_attention_heads=16) if config.w_clip_vit else None
        )
    ours = {n: w for n, w in network.state_dict().items() if n.startswith(("showo.", "mm_projector."))}
    keys = published["showo_keys"] | entry["extra_keys"]
    assert {n: list(w.shape) for n, w in ours.items()} == {name: value["shape"] for name, value in keys.items()}
    assert sum(w.numel() for w in ours.values()) == entry["num_parameters"]
    assert config.num_vq_tokens == {256: 256, 512: 1024}[entry["resolution"]]
    assert config == shape.PUBLISHED[entry["published_checkpoint"]]


def test_the_golden_weights_are_reproduced(network: ShowONetwork, facts: dict[str, Any]) -> None:
    weights = dict(network.named_parameters())
    for name, check in facts["fill_check"].items():
        ours = weights[name].detach()
        assert ours.flatten()[:4].tolist() == pytest.approx(check["first4"], abs=1e-6), name
        assert ours.double().square().sum().item() == pytest.approx(check["sumsq"], rel=1e-5), name


# -- sequences and attention ---------------------------------------------------------------------------------------


def test_sequences_are_the_published_ones(facts: dict[str, Any]) -> None:
    for case in facts["layout_cases"]:
        text, image = case["text_token_ids"], case["image_ids"]
        assert upstream.drawing(LAYOUT, text, image) == case["t2i_gen"]["ids"], case["name"]
        assert upstream.drawing(LAYOUT, [], image) == case["t2i_train_condition_dropped"]["ids"], case["name"]
        assert upstream.caption(LAYOUT, image, text) == case["mmu_train"]["ids"], case["name"]
        assert upstream.text_alone(LAYOUT, text, case["lm"]["max_seq_len"]) == case["lm"]["ids"], case["name"]


def test_the_unpadded_prompt_is_the_end_of_the_padded_one(facts: dict[str, Any]) -> None:
    for case in facts["layout_cases"]:
        padded = case["t2i_gen"]["ids"][: LAYOUT.text_tokens + 1]
        prompt = LAYOUT.prompt(case["text_token_ids"])
        assert padded == [LAYOUT.pad] * (len(padded) - len(prompt)) + prompt


def test_attention_in_drawings_is_the_published_one(numbers: dict[str, Tensor]) -> None:
    ids = torch.cat([numbers["t2i.cond_ids"], numbers["t2i.uncond_ids"]])
    assert torch.equal(upstream.drawing_mask(LAYOUT, ids), numbers["t2i.mask"][:, 0])


def test_attention_with_pads_that_are_seen_is_the_published_one(numbers: dict[str, Tensor]) -> None:
    """The published program can be told to let everyone see the pads (`rm_pad_in_image` off), which is attention to
    pads as to words. Neither it nor we draw so: the policy's prompts have no pads at all, which is the other way."""
    ids = torch.cat([numbers["t2i.cond_ids"], numbers["t2i.uncond_ids"]])
    seen = numbers["t2i.mask_rm_pad_false"][:, 0]
    word = LAYOUT.eot
    assert torch.equal(upstream.drawing_mask(LAYOUT, ids.where(ids != LAYOUT.pad, word)), seen)
    hidden = seen & ~upstream.drawing_mask(LAYOUT, ids)
    assert hidden.any()
    assert (ids[hidden.nonzero()[:, 0], hidden.nonzero()[:, 2]] == LAYOUT.pad).all()


def test_attention_without_pads_hides_nothing() -> None:
    ids = torch.tensor([upstream.drawing(LAYOUT, range(10, 20), [LAYOUT.mask] * N)])
    mask = upstream.drawing_mask(LAYOUT, ids)[0]
    assert mask[13:].all()
    assert torch.equal(mask[:13], torch.ones_like(mask).tril()[:13])


@pytest.mark.parametrize("kind", ["mmu", "mmu_train"])
def test_attention_in_answers_is_the_published_one(numbers: dict[str, Tensor], kind: str) -> None:
    assert torch.equal(upstream.answering_mask(LAYOUT, numbers[f"{kind}.ids"]), numbers[f"{kind}.mask"][:, 0])


@pytest.mark.parametrize("system", [0, 28])
def test_attention_with_clip_is_the_published_one(numbers: dict[str, Tensor], system: int) -> None:
    published = numbers[f"mmu_vit_mask.sys{system}"][0, 0]
    at = torch.arange(len(published))
    assert torch.equal(upstream.causal_mask((at >= system + 2) & (at < system + 2 + 576)), published)


# -- the network ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["t2i", "t2i.partial", "lm", "mmu", "mmu_train", "train"])
def test_logits_are_the_published_ones(network: ShowONetwork, numbers: dict[str, Tensor], kind: str) -> None:
    if kind == "t2i":
        ids, mask, wanted = torch.cat([numbers["t2i.cond_ids"], numbers["t2i.uncond_ids"]]), "t2i.mask", "t2i.logits"
    elif kind == "t2i.partial":
        ids, mask, wanted = numbers["t2i.partial_ids"], "t2i.mask", "t2i.partial_logits"
    else:
        ids, mask, wanted = numbers[f"{kind}.ids"], f"{kind}.mask", f"{kind}.logits"
    ours = upstream.logits(network, ids, numbers[mask][:, 0])
    assert (ours - numbers[wanted]).abs().max() < LOGITS


def test_hidden_states_are_the_published_ones(network: ShowONetwork, numbers: dict[str, Tensor]) -> None:
    ids = torch.cat([numbers["t2i.cond_ids"], numbers["t2i.uncond_ids"]])
    states = network.showo(
        input_ids=ids, attention_mask=numbers["t2i.mask"], use_cache=False, output_hidden_states=True
    ).hidden_states
    for i, state in enumerate(states):
        assert (state - numbers[f"t2i.hidden.{i}"]).abs().max() < LOGITS


def test_the_image_head_is_the_part_of_the_head_that_names_codes(network: ShowONetwork) -> None:
    states = torch.randn(3, 64)
    whole = network.showo.lm_head(states)[:, LAYOUT.first_image : LAYOUT.mask]
    assert (network.image_head(states) - whole).abs().max() < LOGITS


def test_the_projector_is_the_published_one(
    numbers: dict[str, Tensor], fill_golden: Callable[[nn.Module], None]
) -> None:
    holder = nn.ModuleDict({"mm_projector": projector(1024, 2048)})
    fill_golden(holder)
    with torch.no_grad():
        ours = holder["mm_projector"](numbers["mm_projector.input"])
    assert (ours - numbers["mm_projector.output"]).abs().max() < LOGITS


def test_training_losses_are_the_published_ones(
    network: ShowONetwork, numbers: dict[str, Tensor], facts: dict[str, Any]
) -> None:
    logits, labels, losses = (
        upstream.logits(network, numbers["train.ids"], numbers["train.mask"][:, 0]),
        numbers["train.labels"],
        {},
    )
    drawing = slice(LAYOUT.text_tokens + 1, None)
    losses["loss_t2i"] = F.cross_entropy(
        logits[:2, drawing].flatten(0, 1), labels[:2, drawing].flatten(), ignore_index=upstream.IGNORED
    )
    for name, rows in (("loss_lm", slice(2, 4)), ("loss_mmu", slice(4, 6))):
        shifted, wanted = logits[rows, :-1].flatten(0, 1), labels[rows, 1:].flatten()
        losses[name] = F.cross_entropy(shifted, wanted, ignore_index=upstream.IGNORED)
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(facts["train_losses"][name], abs=1e-5), name


def test_random_masking_is_the_published_one(numbers: dict[str, Tensor], facts: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(facts["train_masking"]["global_torch_seed"])
    share, u = torch.rand(2, generator=generator), torch.rand(2, N, generator=generator)
    assert torch.allclose(share, numbers["train_masking.t_uniform"])
    hidden = masked.random_masking(share, u)
    codes = numbers["train_masking.codes"]
    assert torch.equal(codes.masked_fill(hidden, LAYOUT.mask), numbers["train_masking.input_ids"])
    assert torch.equal(codes.masked_fill(~hidden, upstream.IGNORED), numbers["train_masking.labels"])


# -- masked decoding -----------------------------------------------------------------------------------------------


def test_the_schedule_is_the_published_one(facts: dict[str, Any]) -> None:
    tables = facts["cosine_mask_length_table"]["tables"]
    assert len(tables) > 3
    for name, table in tables.items():
        positions, rounds = (int(part.split("=")[1]) for part in name.split(","))
        left = masked.still_masked(positions, rounds)
        assert left == [int(row[1]) for row in table], name
        before = positions
        for count, (_, _, after, decided) in zip(left, table, strict=True):
            again = torch.zeros(1, positions, dtype=torch.bool)
            again[0, :before] = True
            logp = torch.linspace(-2, -1, positions)[None]
            assert masked.masked_again(again, logp, torch.zeros_like(logp), count, 0.0).sum() == after
            assert before - after == decided
            before = after


@pytest.mark.parametrize("name", TRACES)
def test_noise_fades_as_published(facts: dict[str, Any], name: str) -> None:
    trace = facts["traces"][name]
    ours = masked.temperatures(trace["initial_temperature"], trace["steps"])
    assert ours == pytest.approx([step["noise_temperature"] for step in trace["per_step"]], abs=1e-6)


class Recorded:
    """Hands out the codes and the noise of a trace."""

    def __init__(self, numbers: dict[str, Tensor], name: str) -> None:
        self.numbers, self.name = numbers, name
        self.confidence: dict[int, Tensor] = {}

    def codes(self, t: int, logp: Tensor, cells: Tensor) -> Tensor:
        ids = self.numbers[f"{self.name}.step{t}.multinomial_ids"].flatten()[cells]
        self.confidence[t] = logp.gather(1, ids[:, None])[:, 0].exp()
        return ids

    def noise(self, t: int) -> Tensor:
        return self.numbers[f"{self.name}.step{t}.gumbel"]


class Seeded:
    """Draws as upstream does: for known positions too, from one generator."""

    def __init__(self, seed: int, shape: tuple[int, int]) -> None:
        self.generator, self.shape = torch.Generator().manual_seed(seed), shape

    def codes(self, t: int, logp: Tensor, cells: Tensor) -> Tensor:
        probabilities = torch.ones(self.shape[0] * self.shape[1], logp.shape[1])
        probabilities[cells] = logp.exp()
        return torch.multinomial(probabilities, 1, generator=self.generator)[cells, 0]

    def noise(self, t: int) -> Tensor:
        return masked.gumbel(torch.rand(self.shape, generator=self.generator))


class Drawn:
    """A drawing of the trace's prompts by our sampler, prompts computed once."""

    def __init__(
        self, network: ShowONetwork, numbers: dict[str, Tensor], trace: dict[str, Any], name: str, chance: Any
    ):
        start = numbers[f"{name}.start_ids"]
        split = LAYOUT.text_tokens + 1
        prompts = [[i for i in row if i != LAYOUT.pad] for row in start[:, :split].tolist()]
        guided = trace["uses_uncond"]
        if guided:
            prompts.append(LAYOUT.prompt([]))
        embed = network.showo.model.embed_tokens
        done = causal.run_prefixes(network.showo.model, [embed(torch.tensor(p)) for p in prompts], end=split)
        self.rows = causal.Rows(torch.tensor([0, 1]), torch.tensor([2, 2]) if guided else None)

        def frame(canvas: Tensor) -> Tensor:
            edge = canvas.new_ones(len(canvas), 1)
            ids = torch.cat([edge * LAYOUT.soi, canvas + LAYOUT.first_image, edge * LAYOUT.eoi], 1)
            return embed(ids)

        self.reader = masked.Reader(network.showo.model, done, frame, split, network.image_head, mask=CODES)
        self.sampling = Sampling(
            guidance=1 + trace["guidance"], rounds=trace["steps"], choice_temperature=trace["initial_temperature"]
        )
        canvas = start[:, split + 1 : -1] - LAYOUT.first_image
        self.codes, self.order, self.logp = masked.sample(self.reader, self.rows, canvas, self.sampling, chance)


@pytest.mark.parametrize("name", TRACES)
def test_guided_logits_are_the_published_ones(
    network: ShowONetwork, numbers: dict[str, Tensor], facts: dict[str, Any], name: str
) -> None:
    """Through the shared prompts, though upstream sends prompt, pads and canvas through again every round."""
    trace = facts["traces"][name]
    drawn = Drawn(network, numbers, trace, name, Recorded(numbers, name))
    for t in range(trace["steps"]):
        canvas = numbers[f"{name}.step{t}.canvas"] - LAYOUT.first_image
        c, u = drawn.rows.split(network.image_head(drawn.reader.states(canvas, drawn.rows)))
        guided = c if u is None else tokens.guide(c, u, drawn.sampling.guidance)
        assert (guided - numbers[f"{name}.step{t}.guided_logits"]).abs().max() < GUIDED


@pytest.mark.parametrize("name", TRACES)
def test_given_the_recorded_draws_every_round_decides_the_same(
    network: ShowONetwork, numbers: dict[str, Tensor], facts: dict[str, Any], name: str
) -> None:
    trace, chance = facts["traces"][name], Recorded(numbers, name)
    drawn = Drawn(network, numbers, trace, name, chance)
    assert torch.equal(drawn.codes, numbers[f"{name}.final_ids"])
    for t in range(trace["steps"]):
        canvas = numbers[f"{name}.step{t}.canvas"] - LAYOUT.first_image
        unknown = canvas == CODES
        assert torch.equal(drawn.codes.masked_fill(drawn.order >= t, CODES), canvas), f"round {t}"
        assert torch.allclose(chance.confidence[t], numbers[f"{name}.step{t}.confidence"][unknown], atol=1e-5)
        if t < trace["steps"] - 1:
            again = unknown & (drawn.order > t)
            assert torch.equal(again, numbers[f"{name}.step{t}.remask"]), f"round {t}"


@pytest.mark.parametrize("name", TRACES)
def test_from_the_seed_alone_the_drawing_is_the_published_one(
    network: ShowONetwork, numbers: dict[str, Tensor], facts: dict[str, Any], name: str
) -> None:
    trace = facts["traces"][name]
    drawn = Drawn(network, numbers, trace, name, Seeded(trace["generator_seed"], (2, N)))
    assert torch.equal(drawn.codes, numbers[f"{name}.final_ids"])


@pytest.mark.parametrize("name", TRACES)
def test_a_replay_of_the_published_drawing_scores_the_recorded_confidences(
    network: ShowONetwork, numbers: dict[str, Tensor], facts: dict[str, Any], name: str
) -> None:
    drawn = Drawn(network, numbers, facts["traces"][name], name, Recorded(numbers, name))
    wanted = drawn.order != selection.GIVEN
    logp = masked.score(drawn.reader, drawn.rows, drawn.codes, drawn.order, wanted, drawn.sampling)
    assert (logp - drawn.logp).abs().max() < GUIDED
    for t in range(facts["traces"][name]["steps"]):
        now = drawn.order == t
        assert torch.allclose(logp[now].exp(), numbers[f"{name}.step{t}.confidence"][now], atol=1e-5)


def test_answers_are_the_published_ones(
    network: ShowONetwork, numbers: dict[str, Tensor], facts: dict[str, Any]
) -> None:
    """Greedily, with keys and values kept; upstream sends the whole sequence through for every token."""
    ids = numbers["mmu.ids"]
    embed = network.showo.model.embed_tokens
    seen = torch.arange(ids.shape[1]) <= N + 2
    greedy, _ = causal.sample(
        causal.Speaker(network.showo.model, embed, network.showo.lm_head),
        causal.Prompts(list(embed(ids)), causal.Rows(torch.arange(2), None), [seen, seen]),
        Sampling(temperature=1e-4),
        torch.full((2, 8), 0.5),
    )
    assert greedy.tolist() == facts["mmu_generate"]["greedy_top_k_1_max_new_tokens_8"]
