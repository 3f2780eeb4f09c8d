"""The policy interface: one unified model that writes, draws and scores what it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from unison.config import PolicyConfig, ScoringConfig
from unison.policies.adapters import add_adapters, merged, select_trained, write_adapters
from unison.policies.reference import WeightCopy, in_reference
from unison.types import Action, Context, Sampling, Selected, Tokens

if TYPE_CHECKING:
    from PIL.Image import Image

ADAPTER = "adapter"
"""The folder of a checkpoint that holds the adapters which are merged into its weights."""
Target: TypeAlias = "str | Image | Action"


class Policy(nn.Module):
    """A unified multimodal model. What is sampled is what is trained: `forward` scores with the sampling's own guidance
    and temperature.

    A family implements `write`, `draw`, `forward`, `encode`, `hidden_states`, `decode` and `write_checkpoint`;
    `abilities` says which verbs it has.
    """

    family: ClassVar[str]
    abilities: ClassVar[frozenset[str]]
    """Subset of {"write", "draw", "edit", "relax drawings", "mask drawings anew", "denoise drawings"}: to relax is to
    read a `Relaxed` part of a context, to mask anew to score drawings by the one-pass estimates of `select`, to denoise
    to draw in latents, which can be scored as given ones, noised anew."""

    plain_parts: ClassVar[Mapping[str, str]] = {"": ""}
    """Modules of the network that a library loads by itself, "" being the whole, and the folder of their adapters."""

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

    def encode(self, targets: Sequence[Target], seeds: Sequence[int] | None = None) -> Sequence[Action]:
        """The actions that would have produced the given texts or images; a target that is an action stays.

        Args:
            seeds: of each target, where more than one action would have: a masking, a level of noise. None draws from
                torch's global generator.
        """
        raise NotImplementedError

    def hidden_states(self, images: Sequence[Image], texts: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        """Last hidden states at the image tokens [I, D] and at the text's own tokens [T, D] of every pair, read as one
        user turn, image first; no gradient."""
        raise NotImplementedError

    def decode(self, actions: Sequence[Action]) -> list[Any]:
        """Text (str) of each text action, picture (PIL) of each image action."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Writes a plain checkpoint that the model's own library loads.

        Adapters are merged, whole in float32 (`adapters.merged`), and lie beside the weights as well, in `adapter`, for
        those who put them on the base themselves, in bfloat16 say. What `lora_beside` trains is in the weights alone.
        """
        self.write_checkpoint(merged(self._adapted[0]) if self._adapted else self.network, folder)
        if self._adapted:
            write_adapters(self._adapted[0], self.config, self.plain_parts, folder / ADAPTER)

    def write_checkpoint(self, network: Any, folder: Path) -> None:
        """Writes a network of the family, and what belongs to it, as its own library loads it."""
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
        if not isinstance(action, Tokens):
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

    def keep_reference(self, moving: bool = False) -> WeightCopy:
        """Remembers the present weights as the reference; adapters need no copy unless it is to move.

        A reference that moves is a state of the run, which is saved with it and follows the trained weights: the policy
        that samples in DiffusionNFT, arXiv 2509.16117; TR-DPO's soft update, arXiv 2404.09656.
        """
        self._frozen_copy = WeightCopy(self.network, adapters=moving)
        return self._frozen_copy

    def reference(self) -> AbstractContextManager[None]:
        """Inside it the policy is the frozen reference: remembered weights in place, adapters off if they are none.

        Raises:
            RuntimeError: no reference was kept.
        """
        if not self._frozen_copy and not self._adapted:
            raise RuntimeError("the policy keeps no reference: call keep_reference() before training")
        return in_reference(self._frozen_copy, self._adapted[0] if self._adapted else None)
