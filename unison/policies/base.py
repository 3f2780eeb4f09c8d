"""The policy interface: one unified model that writes, draws and scores what it did."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from unison.config import PolicyConfig, ScoringConfig
from unison.types import Action, Context, Latents, Modality, Part, Relaxed, Sampling, Selected, Tokens

if TYPE_CHECKING:
    from PIL.Image import Image

Target: TypeAlias = "str | Image | Tokens"


class Policy(nn.Module):
    """A unified multimodal model. What is sampled is what is trained: `forward` scores with the sampling's own guidance
    and temperature.

    A family implements `write`, `draw`, `forward`, `encode`, `hidden_states`, `decode`, `paint` and `save`; `abilities`
    says which verbs it has.
    """

    family: ClassVar[str]
    abilities: ClassVar[frozenset[str]]
    """Subset of {"write", "draw", "edit", "relax drawings", "mask drawings anew", "denoise drawings"}: to relax is to
    read a `Relaxed` part of a context, to mask anew to score drawings by the one-pass estimates of `thin`, to denoise
    to draw in latents, which can be scored as given ones, noised anew."""

    packs: ClassVar[bool] = False
    """Whether it can score tokens in one packed sequence."""

    def __init__(self, network: nn.Module, config: PolicyConfig) -> None:
        super().__init__()
        if config.attention == "flex" and not self.packs:
            raise ValueError(
                f"policy.attention = 'flex': the {self.family} family cannot score in one packed sequence; take 'sdpa'"
            )
        self.network = network
        self.config = config
        self._frozen_copy: WeightCopy | None = None
        self._adapted: list[Any] = []  # the peft wrapper, in a list so that its weights are not registered twice
        select_trained(network, config.frozen)
        if config.lora_rank:
            self._adapted.append(add_adapters(network, config))

    def write(self, contexts: Sequence[Context], sampling: Sampling, seeds: Sequence[int]) -> list[Tokens]:
        """Samples a text action for every context; each row's randomness comes from its seed alone."""
        raise NotImplementedError

    def draw(self, contexts: Sequence[Context], sampling: Sampling, seeds: Sequence[int]) -> list[Action]:
        """Samples an image action for every context."""
        raise NotImplementedError

    def forward(
        self, contexts: Sequence[Context], actions: Sequence[Action], anchors: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Log-probability [L] of every decision of every action, differentiable; with `anchors`, the divergence from
        the reference below [2, L]."""
        raise NotImplementedError

    def anchors(self, contexts: Sequence[Context], actions: Sequence[Action]) -> list[Tensor]:
        """What the divergence of each action is measured from; to be called inside `reference()`.

        Log-probabilities [L]. For actions whose divergence has a closed form a family gives what that form needs, such
        as the means of transitions.
        """
        with torch.no_grad():
            return self(contexts, actions)

    def select(self, actions: Sequence[Action], scoring: ScoringConfig, seed: int) -> list[Selected]:
        """What an update scores of each action, by `scoring.drawings`; by default all of it.

        A family whose scoring costs a pass for each of several rounds may score `scoring.rounds` of them, so that
        weighted sums are unbiased, or a surrogate in a single pass. The actions are those of one group, and what is
        random depends on them and `seed` alone, so that the old, the trained and the reference policy score the same.
        """
        sampled = scoring.old_logp == "sampled"
        return [Selected(a, a.mask.float(), a.logp if sampled else None, a.mask) for a in actions]

    def encode(self, targets: Sequence[Target]) -> Sequence[Action]:
        """The actions that would have produced the given texts or images; a target that is an action stays."""
        raise NotImplementedError

    def nll(self, contexts: Sequence[Context], targets: Sequence[Target]) -> Tensor:
        """Mean negative log-likelihood per decision of each supervised target. [B]"""
        logps = self(contexts, self.encode(targets))
        return torch.stack([-logp.mean() for logp in logps])

    def hidden_states(self, images: Sequence[Image], texts: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        """Last hidden states at the image tokens [I, D] and at the text's own tokens [T, D] of every pair, read as one
        user turn, image first; no gradient."""
        raise NotImplementedError

    def decode(self, actions: Sequence[Action]) -> list[Any]:
        """Text (str) of each text action, picture (PIL) of each image action."""
        raise NotImplementedError

    def paint(self, drawings: Sequence[Action]) -> Iterator[Tensor]:
        """Pixels [B, 3, H, W] of drawings, as many at a time as go through the painter in one pass."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Writes a plain checkpoint that the model's own library loads, adapters merged."""
        raise NotImplementedError

    @property
    def decoder(self) -> Any:
        """What reads tokens: of several parts the language model's `transformers` decoder over embeddings."""
        return self.network

    def reads(self, action: Action) -> tuple[nn.Module, int]:
        """The network that decides an action, and how many positions sampling it sends through that network, of all
        branches of guidance and without the prompt: every token once, every round a whole canvas, every denoising step
        the whole latent."""
        branches = 2 if action.modality == "image" and action.sampling.guidance != 1 else 1
        if isinstance(action, Latents):
            return self.network, branches * len(action) * action.path.shape[-2] * action.path.shape[-1]
        rounds = len(action.order.unique())
        return self.decoder, branches * len(action) * (1 if rounds == len(action) else rounds)

    def require(self, verb: str, why: str) -> None:
        """Checks an ability before training starts.

        Raises:
            ValueError: the family does not have it.
        """
        if verb not in self.abilities:
            raise ValueError(
                f"{why} needs a model that can {verb}, but the {self.family} family can only "
                f"{', '.join(sorted(self.abilities))}: choose another setting, scenario or checkpoint"
            )

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def autocast(self, sampling: bool = False) -> torch.autocast:
        """Matrix products in the configured type, which sampling may have of its own.

        Weights that are trained are cast once for as long as it lasts, so a rollout has a copy of them in its type.
        """
        own = self.config.rollout_dtype if sampling else None
        kind = own or self.config.compute_dtype
        return torch.autocast(self.device.type, torch.bfloat16, enabled=kind == "bfloat16")

    # -- the reference -------------------------------------------------------------------------------------------

    def keep_reference(self, moving: bool = False) -> None:
        """Remembers the present weights as the reference; adapters need no copy unless it is to move."""
        self._frozen_copy = WeightCopy(self.network, adapters=moving)

    def reference(self) -> AbstractContextManager[None]:
        """Inside it the policy is the frozen reference: remembered weights in place, adapters off if they are none.

        Raises:
            RuntimeError: no reference was kept.
        """
        if not self._frozen_copy and not self._adapted:
            raise RuntimeError("the policy keeps no reference: call keep_reference() before training")
        return self._as_reference()

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        kept = self._frozen_copy
        untouched = self._adapted and not (kept and kept.has_adapters)
        off = self._adapted[0].disable_adapter() if untouched else nullcontext()
        with off, kept.in_place() if kept else nullcontext():
            yield


class WeightCopy:
    """A copy of a network's trained weights as they are now; it can take their place and follow them."""

    def __init__(self, network: nn.Module, adapters: bool = True) -> None:
        """`adapters`: whether LoRA's are copied too."""
        self._network = network
        trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        self._copy = {name: p.detach().clone() for name, p in trained if adapters or not is_adapter(name)}

    @property
    def has_adapters(self) -> bool:
        """Whether LoRA's adapters are among the copied weights."""
        return any(map(is_adapter, self._copy))

    def each(self, change: Callable[[Tensor], Tensor]) -> WeightCopy:
        """Another copy, whose tensors are what `change` makes of this one's."""
        other = copy.copy(self)
        other._copy = {name: change(tensor) for name, tensor in self._copy.items()}
        return other

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside it the network has the copied weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        parameters = dict(self._network.named_parameters())
        for name, other in self._copy.items():
            parameters[name].data, self._copy[name] = other, parameters[name].data

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """The copy becomes `decay` of itself and for the rest the trained weights."""
        parameters = dict(self._network.named_parameters())
        for name, own in self._copy.items():
            own.lerp_(parameters[name], 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        return self._copy

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, own in self._copy.items():
            own.copy_(state[name])


def is_adapter(name: str) -> bool:
    """Whether a parameter is a LoRA adapter's, by the name that `peft` gives it."""
    return ".lora_" in name


def matches(patterns: Iterable[str], name: str) -> bool:
    """Whether any of the patterns is found in the name."""
    return any(re.search(pattern, name) for pattern in patterns)


def moving_reference(policy: Policy) -> WeightCopy:
    """The policy's reference as a state of the run, which is saved with it and follows the trained weights.

    Its users: the policy that samples in DiffusionNFT, arXiv 2509.16117; TR-DPO's soft update, arXiv 2404.09656.
    """
    policy.keep_reference(moving=True)
    assert policy._frozen_copy
    return policy._frozen_copy


def select_trained(network: nn.Module, frozen: Sequence[str]) -> None:
    """Freezes the parameters whose names match any of the patterns.

    Raises:
        ValueError: a pattern matches nothing, or nothing is left to train.
    """
    names = [name for name, _ in network.named_parameters()]
    for pattern in frozen:
        if not any(re.search(pattern, name) for name in names):
            roots = sorted({".".join(name.split(".")[:2]) for name in names})
            raise ValueError(f"policy.frozen pattern {pattern!r} matches no parameter; modules are {', '.join(roots)}")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not matches(frozen, name))
    if not any(p.requires_grad for p in network.parameters()):
        raise ValueError(f"policy.frozen = {tuple(frozen)} freezes every parameter: leave something to train")


def add_adapters(network: nn.Module, config: PolicyConfig) -> Any:
    """Adds LoRA adapters in place (Hu et al. 2021) and freezes all other weights but those of `lora_beside` that are
    trained. Returns the `peft` wrapper.

    Raises:
        ValueError: `lora_targets` matches no module.
    """
    import peft

    beside = [p for n, p in network.named_parameters() if p.requires_grad and matches(config.lora_beside, n)]
    settings = peft.LoraConfig(r=config.lora_rank, lora_alpha=2 * config.lora_rank, target_modules=config.lora_targets)
    try:
        adapted = peft.get_peft_model(network, settings)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"policy.lora_targets = {config.lora_targets!r}: {error}") from error
    for parameter in beside:
        parameter.requires_grad_(True)
    return adapted


def distinct(contexts: Sequence[Context]) -> tuple[list[Context], list[int]]:
    """The different context objects, and for each row the number of its own: siblings share one object."""
    numbers: dict[int, int] = {}
    rows = [numbers.setdefault(id(context), len(numbers)) for context in contexts]
    firsts = {number: context for context, number in zip(reversed(contexts), reversed(rows), strict=True)}
    return [firsts[number] for number in range(len(numbers))], rows


def by_kind(actions: Sequence[Action]) -> dict[tuple[Modality, Sampling], list[int]]:
    """Row numbers of the actions that can be scored in one pass: same modality, same sampling."""
    kinds: dict[tuple[Modality, Sampling], list[int]] = {}
    for row, action in enumerate(actions):
        kinds.setdefault((action.modality, action.sampling), []).append(row)
    return kinds


def relax_alike(drawings: Sequence[Relaxed], relax: Callable[[list[Relaxed], Sampling, float], Tensor]) -> Tensor:
    """What `relax` makes of drawings of one sampling and one temperature, for drawings of any. [I, ...]"""
    kinds: dict[tuple[Sampling, float], list[int]] = {}
    for row, drawing in enumerate(drawings):
        kinds.setdefault((drawing.action.sampling, drawing.temperature), []).append(row)
    found: dict[int, Tensor] = {}
    for (sampling, temperature), rows in kinds.items():
        alike = relax([drawings[row] for row in rows], sampling, temperature)
        found |= dict(zip(rows, alike, strict=True))
    return torch.stack([found[row] for row in range(len(drawings))])


# -- tokens ----------------------------------------------------------------------------------------------------------


def tokens_of(action: Action) -> Tokens:
    """The action, which must be a discrete one.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(action, Tokens):
        raise ValueError(f"this family acts in tokens, not in {type(action).__name__}")
    return action


def is_reply(part: Part) -> bool:
    """Whether a part of a context is an earlier reply of the policy's own."""
    return isinstance(part, Tokens) and part.modality == "text"


def sampled(modality: Modality, ids: Tensor, logp: Tensor, stop: int | None, sampling: Sampling) -> Tokens:
    """The action of a row sampled token by token, cut after its stop token."""
    ends = (ids == stop).nonzero() if stop is not None else ids.new_empty(0, 1)
    length = int(ends[0]) + 1 if len(ends) else len(ids)
    ids, logp = ids[:length].cpu(), logp[:length].float().cpu()
    return Tokens(modality, ids, torch.arange(length), logp, torch.ones(length, dtype=torch.bool), sampling)


def given(modality: Modality, ids: Tensor) -> Tokens:
    """An action of tokens in order that was given, not sampled."""
    return sampled(modality, ids, torch.zeros(len(ids)), None, Sampling())


def own_tokens(tokenizer: Any, segment: str, text: str) -> Tensor:
    """Which tokens of a segment of a chat are those of the text in it, not the template's. bool"""
    start = segment.index(text.strip())  # the template may cut space at the ends
    end = start + len(text.strip())
    spans = tokenizer(segment, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return torch.tensor([a < end and b > start for a, b in spans])
