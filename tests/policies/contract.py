"""What test_contract.py asks of every family: an entry of FAMILIES says what it must know of one, no more.

A family's policy is the real class at toy size with random weights, so large that every part of a context matters.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from unison.policies.base import Policy, Target
from unison.types import Action, Context, Latents, Modality, Part, Sampling, Tokens
from unison.world.render import render
from unison.world.scene import sample

PICTURE, OTHER = (render(sample(random.Random(i), "position", "train")[1]) for i in range(2))
SHORT, LONG = "a red circle", "two blue squares and a black diamond left of it"
TEXT = Sampling(max_tokens=12)
CLOSE = 1e-4
READ = [(PICTURE, SHORT), (OTHER, LONG), (PICTURE, "circle"), (OTHER, f" {SHORT}\nand {SHORT} ")]
"""Pictures and texts that are read for their hidden states."""
LATENTS = Latents(torch.zeros(2, 1, 1, 1), torch.zeros(2), torch.zeros(1), torch.ones(1) > 0, Sampling())
DRAWN = Tokens("image", torch.zeros(4, dtype=torch.long), torch.arange(4), torch.zeros(4), torch.ones(4) > 0, TEXT)

Refusal = tuple[Callable[[Policy], object], str]


@dataclass(frozen=True)
class Family:
    """What is a family's own in the claims of the contract."""

    name: str
    make: str
    """Fixture that makes a policy of its own weights, equal to others' at first; fields of PolicyConfig by keyword."""
    drawings: dict[str, Sampling]
    """Samplings of drawings by what they try, "plain" and "guided" among them."""
    adapters: dict[str, Any]
    """Fields of PolicyConfig that adapt it."""
    frozen: tuple[str, ...]
    """Patterns that freeze parts of it."""
    decisions: int
    """Decisions of a guided drawing."""
    image_tokens: int
    """Positions of a picture in what is read."""
    prompts: int
    """Prefixes that guided drawings from two prompts of two lengths read, the unconditional ones among them."""
    eyes: Callable[[Any], nn.Module]
    """What sees pictures."""
    seen_rows: int
    """Rows of its input that a picture takes."""
    head: Callable[[Any], nn.Linear]
    """The output head of texts."""
    plain: Callable[[Path], dict[str, Tensor]]
    """The weights of a saved folder as the libraries it is written for read them, under the network's names."""
    refusals: dict[str, Refusal]
    """Calls that it refuses, each with what the error says."""
    before_text: str = ""
    """What stands before a text that is read and joins its first token."""
    visible: float = 0.1
    """Least difference of a drawing's log-probabilities that is no rounding."""
    draws_from_pictures: bool = True
    picture_keeps_its_place: bool = True
    """Whether it matters where in a context a picture stands."""
    on_a_second_device: str = ""
    """Bundled model whose verbs run on a device other than the CPU."""
    double: bool = False
    """Whether gradients of a whole and of its parts agree in double precision alone."""
    relaxed: tuple[str, ...] = ()
    """Which of its policies relax drawings in the contract, of "policy" and "adapted"."""
    drawing_side: Callable[[Policy, dict[str, Tensor]], dict[str, Tensor]] = field(default=lambda _, found: found)
    """Of gradients those at weights that only drawing uses."""


@dataclass
class Subject:
    """A family, and policies of it whose weights no test may change."""

    family: Family
    make: Callable[..., Policy]
    known: dict[tuple[int, Modality], dict[str, Context]] = field(default_factory=dict)

    @cached_property
    def policy(self) -> Policy:
        return self.make()

    @cached_property
    def adapted(self) -> Policy:
        """With adapters that are not zero."""
        policy = self.make(**self.family.adapters)
        perturb(policy)
        return policy

    @property
    def tokenizer(self) -> Any:
        return self.policy.tokenizer

    @property
    def guided(self) -> Sampling:
        return self.family.drawings["guided"]

    @property
    def samplings(self) -> dict[str, tuple[Modality, Sampling]]:
        return {
            "text": ("text", TEXT),
            "cool text": ("text", replace(TEXT, temperature=0.7)),
            **{name: ("image", sampling) for name, sampling in self.family.drawings.items()},
        }

    def two(self, modality: Modality) -> Sampling:
        """The sampling of claims that need only one of each modality."""
        return TEXT if modality == "text" else self.guided

    def own(self, policy: Policy) -> tuple[Any, Tokens]:
        """A drawing and a reply of the policy's own."""
        reply = policy.write([Context((SHORT,))], Sampling(max_tokens=6), [78])[0]
        return policy.draw([Context((SHORT,))], self.guided, [77])[0], reply

    def contexts(self, policy: Policy, modality: Modality) -> dict[str, Context]:
        """Every kind of context that the modality allows, made once for a policy."""
        if (id(policy), modality) not in self.known:
            self.known[id(policy), modality] = self._contexts(policy, modality)
        return self.known[id(policy), modality]

    def _contexts(self, policy: Policy, modality: Modality) -> dict[str, Context]:
        drawing, reply = self.own(policy)
        parts: dict[str, tuple[Part, ...]] = {
            "prompt": (SHORT,),
            "prompt of the same length": ("a red square",),
            "long prompt": (LONG,),
            "thought": (SHORT, reply),
            "own reply": (SHORT, reply, LONG),
            "picture": (PICTURE, SHORT),
            "wide picture": (LONG, OTHER.resize((64, 40)), SHORT),
            "pictures": (SHORT, PICTURE, LONG, OTHER),
            "pictures first": (OTHER, PICTURE, LONG),
            "own drawing": (SHORT, drawing, LONG),
            "own drawing and reply": (SHORT, drawing, reply),
        }
        allowed = modality == "text" or self.family.draws_from_pictures
        texts_only = list(parts)[:5]
        return {name: Context(these) for name, these in parts.items() if allowed or name in texts_only}

    def groups(self, policy: Policy, modality: Modality) -> list[Context]:
        """Groups of every kind of context at once."""
        return groups(list(self.contexts(policy, modality).values()))


# -- helps that the families' own tests use too ----------------------------------------------------------------------


def act(
    policy: Policy, modality: Modality, contexts: Sequence[Context], sampling: Sampling, first_seed: int = 0
) -> list[Any]:
    seeds = range(first_seed, first_seed + len(contexts))
    return list((policy.write if modality == "text" else policy.draw)(contexts, sampling, seeds))


def groups(contexts: Sequence[Context], size: int = 2) -> list[Context]:
    return [context for context in contexts for _ in range(size)]


def apart(contexts: Sequence[Context]) -> list[Context]:
    """The same contexts, but siblings no longer share an object."""
    return [Context(context.parts) for context in contexts]


def nll(policy: Policy, contexts: Sequence[Context], targets: Sequence[Target]) -> Tensor:
    """Mean negative log-likelihood per decision of each supervised target. [B]"""
    return torch.stack([-logp.mean() for logp in policy(contexts, policy.encode(targets))])


def gap(logps: Sequence[Tensor], actions: Sequence[Action]) -> float:
    """Largest difference between replayed and sampled log-probabilities."""
    return max((logp - action.logp).abs().max().item() for logp, action in zip(logps, actions, strict=True))


def far(one: Sequence[Tensor], two: Sequence[Tensor]) -> float:
    """Largest difference of two lists of numbers."""
    return max((a - b).abs().max().item() for a, b in zip(one, two, strict=True))


def decided(action: Action) -> list[Tensor]:
    """What an action decided, and when."""
    return [action.ids, action.order] if isinstance(action, Tokens) else [action.path]


def same_action(one: Action, two: Action, close: float = CLOSE) -> bool:
    """Whether two actions are one, tokens to the bit."""
    exact = isinstance(one, Tokens)
    pairs = zip(decided(one), decided(two), strict=True)
    return (
        all(torch.equal(a, b) if exact else far([a], [b]) < close for a, b in pairs)
        and far([one.logp], [two.logp]) < close
    )


def same_weights(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def perturb(policy: Policy, scale: float = 0.1) -> None:
    """Moves every trained weight, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)


def trained_of(policy: Policy) -> dict[str, Tensor]:
    return {name: p for name, p in policy.network.named_parameters() if p.requires_grad}


def gradients(policy: Policy, logps: Sequence[Tensor]) -> dict[str, Tensor]:
    """Gradient of a weighted sum of log-probabilities, different weights at every position."""
    return gradients_of(policy, torch.stack([(p * torch.linspace(-1, 1, len(p))).sum() for p in logps]).sum())


def gradients_of(policy: Policy, loss: Tensor) -> dict[str, Tensor]:
    trained = trained_of(policy)
    found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True, retain_graph=True)
    return {name: g for name, g in zip(trained, found, strict=True) if g is not None}


def assert_same_gradients(one: dict[str, Tensor], two: dict[str, Tensor], share: float = CLOSE) -> None:
    assert one.keys() == two.keys()
    largest = max(g.abs().max() for g in two.values())
    assert largest > 0
    for name in two:
        difference = (one[name] - two[name]).abs().max()
        assert difference <= share * largest, f"{name}: {difference} of {largest}"


def assert_same_scores(policy: Policy, one: Sequence[Tensor], two: Sequence[Tensor], share: float = CLOSE) -> None:
    """Values and gradients."""
    assert far(one, two) < CLOSE
    assert_same_gradients(gradients(policy, one), gradients(policy, two), share)


@contextmanager
def counted(module: nn.Module) -> Iterator[list[int]]:
    """Rows of every call of the module."""
    rows: list[int] = []

    def count(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = kwargs.get(
            "inputs_embeds", kwargs.get("hidden_states", args[0] if args else kwargs.get("pixel_values"))
        )
        rows.append(len(cast(Tensor, first)))

    handle = module.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


# -- the families ----------------------------------------------------------------------------------------------------


def janus_plain(folder: Path) -> dict[str, Tensor]:
    from transformers import JanusForConditionalGeneration

    return JanusForConditionalGeneration.from_pretrained(folder).state_dict()


def showo_plain(folder: Path) -> dict[str, Tensor]:
    """The published program loads its own class from such a file; a CLIP tower is that of `transformers`."""
    from safetensors.torch import load_file
    from transformers import CLIPVisionModel

    tower = CLIPVisionModel.from_pretrained(folder / "vision").state_dict() if (folder / "vision").is_dir() else {}
    tokenizer = load_file(folder / "image_tokenizer" / "model.safetensors")
    parts = {"image_tokenizer.": tokenizer, "vision.": tower, "": load_file(folder / "model.safetensors")}
    return {prefix + name: weight for prefix, part in parts.items() for name, weight in part.items()}


def metaquery_plain(folder: Path) -> dict[str, Tensor]:
    from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
    from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
    from safetensors.torch import load_file
    from transformers import Qwen2_5_VLForConditionalGeneration

    kinds: dict[str, tuple[str, Any]] = {
        "qwen.": ("language_model", Qwen2_5_VLForConditionalGeneration),
        "transformer.": ("transformer", SanaTransformer2DModel),
        "vae.": ("vae", AutoencoderDC),
    }
    parts = {prefix: kind.from_pretrained(folder / part).state_dict() for prefix, (part, kind) in kinds.items()}
    parts["bridge."] = load_file(folder / "connector.safetensors")
    return {prefix + name: weight for prefix, part in parts.items() for name, weight in part.items()}


def showo_side(policy: Any, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rows of the embedding that stand for a masked position and that open a prompt."""
    layout = policy.layout
    rows = {name: g if len(g) == layout.mask + 1 else g.T for name, g in found.items() if "embed_tokens" in name}
    ids = {"mask": layout.mask, "prompt": layout.special("<|t2i|>")}
    return {f"{name} {use}": g[row] for name, g in rows.items() for use, row in ids.items() if g.shape[0] > row}


LATENTS_REFUSED: dict[str, Refusal] = {
    "latents": (lambda p: p([Context((SHORT,))], [LATENTS]), "acts in tokens, not in Latents")
}
HIDDEN_REFUSED: dict[str, Refusal] = {
    "an unconditional reply": (
        lambda p: p.write([Context((SHORT,), unconditional=True)], TEXT, [0]),
        "an unconditional context is for drawing: a reply has no unconditional prompt",
    )
}

JANUS = Family(
    name="janus",
    make="make_policy",
    drawings={
        "plain": Sampling(),
        "lightly guided": Sampling(guidance=2.0),
        "guided": Sampling(guidance=5.0),
        "cool and guided": Sampling(temperature=0.7, guidance=5.0),
        "guided, conditional score": Sampling(guidance=5.0, score_conditional=True),
    },
    adapters={"lora_rank": 4},
    frozen=("vision_model", r"^model\.vqmodel"),
    decisions=36,
    image_tokens=36,
    prompts=4,  # an unconditional one for each length
    eyes=lambda p: p.network.model.vision_model,
    seen_rows=1,
    head=lambda p: p.network.lm_head,
    plain=janus_plain,
    on_a_second_device="assets/tiny-janus",
    relaxed=("policy",),
    refusals=LATENTS_REFUSED,
    drawing_side=lambda _, found: {
        n: g for n, g in found.items() if "generation_head" in n or "generation_aligner" in n
    },
)
SHOWO = Family(
    name="showo",
    make="make_showo",
    drawings={
        "plain": Sampling(rounds=6),
        "guided": Sampling(guidance=3.0, rounds=6),
        "cool and guided": Sampling(temperature=0.7, guidance=3.0, rounds=6),
        "guided, conditional score": Sampling(guidance=3.0, rounds=6, score_conditional=True),
        "one round": Sampling(guidance=3.0, rounds=1),
        "more rounds than positions": Sampling(rounds=50),
        "the most confident first": Sampling(guidance=3.0, rounds=6, choice_temperature=0.0),
        "positions nearly at random": Sampling(rounds=6, choice_temperature=20.0),
    },
    adapters={
        "lora_rank": 4,
        "lora_targets": r"showo\..*\.(embed_tokens|q_proj|k_proj|v_proj|dense|fc1|fc2|lm_head)",
    },
    frozen=(r"layers\.0\.",),
    decisions=36,
    image_tokens=36,
    prompts=3,
    eyes=lambda p: p.network.image_tokenizer.encoder,
    seen_rows=1,
    head=lambda p: p.network.showo.lm_head,
    plain=showo_plain,
    refusals=LATENTS_REFUSED
    | HIDDEN_REFUSED
    | {
        "latents in a context": (lambda p: p.write([Context((LATENTS, SHORT))], TEXT, [0]), "not in Latents"),
        "a drawing from a picture": (
            lambda p: p.draw([Context((PICTURE, SHORT))], Sampling(), [0]),
            "the showo family cannot draw from an image",
        ),
    },
    on_a_second_device="assets/tiny-showo",
    draws_from_pictures=False,
    picture_keeps_its_place=False,
    relaxed=("policy", "adapted"),
    drawing_side=showo_side,
)
SHOWO_CLIP = replace(
    SHOWO,
    name="showo through CLIP",
    drawings={name: SHOWO.drawings[name] for name in ("plain", "guided")},  # which do not depend on the tower
    relaxed=("policy",),
    on_a_second_device="",
    make="make_showo_clip",
    image_tokens=9,
    before_text=" ",
    eyes=lambda p: p.network.vision,
)
METAQUERY = Family(
    name="metaquery",
    make="make_metaquery",
    drawings={
        "plain": Sampling(steps=4),
        "guided": Sampling(guidance=3.0, source_guidance=1.5, steps=4),
        "guided by the text alone": Sampling(guidance=3.0, steps=4),
        "guided by the source alone": Sampling(source_guidance=2.0, steps=4),
        "guided, conditional score": Sampling(guidance=3.0, source_guidance=1.5, steps=4, score_conditional=True),
        "some steps": Sampling(guidance=3.0, source_guidance=1.5, steps=4, noisy_steps=(1, 3)),
        "another sampler": Sampling(guidance=3.0, source_guidance=1.5, steps=4, sde="cps", noise_level=0.5),
    },
    adapters={"lora_rank": 4, "lora_targets": r".*\.(q_proj|v_proj|down_proj|lm_head|to_q|to_k|project)"},
    frozen=("^qwen",),
    decisions=4,
    image_tokens=9,
    prompts=3,
    eyes=lambda p: p.network.qwen.model.visual,
    seen_rows=36,
    head=lambda p: p.network.qwen.lm_head,
    plain=metaquery_plain,
    refusals=HIDDEN_REFUSED
    | {
        "tokens": (lambda p: p([Context((SHORT,))], [DRAWN]), "draws in latents"),
        "tokens in a context": (lambda p: p.write([Context((DRAWN, SHORT))], TEXT, [0]), "another family"),
    },
    on_a_second_device="assets/tiny-metaquery",
    visible=1e-3,
    double=True,
)
FAMILIES = (JANUS, SHOWO, SHOWO_CLIP, METAQUERY)
