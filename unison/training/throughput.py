"""How fast a run is: tokens and images a second, and model FLOP utilisation.

Utilisation (MFU) is that of PaLM (Chowdhery et al., arXiv 2204.02311, appendix B): the FLOPs that the model's
arithmetic needs, whatever is computed beside or again, over the seconds of the step and the peak FLOP/s of the device.
A position of a network with N weights costs 2 N in a forward pass, and in a backward pass 2 N for its inputs and 2 for
each weight that is trained. A step of reinforcement reads every position once to sample it, and forward and backward
to score it; with a divergence from the reference forward once more. Left out, so that the true share is a little
higher: prompts, attention (12 L H Q T there), output heads, encoders of pictures, autoencoders, rewards.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache

import torch
from torch import nn

from unison.config import RunConfig, ScoringConfig
from unison.objectives import asks_reference
from unison.policies.base import Policy
from unison.types import Action, Metrics, Tokens, Trajectory

OF_THE_STEP = ("rollout", "reward", "update")
"""Phases that count: evaluations and checkpoints between steps do not."""
SIDES = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the matrices whose product measures the peak."""


class Throughput:
    """The figures of a process's own share of a step."""

    def __init__(self, config: RunConfig, policy: Policy) -> None:
        kind = getattr(torch, config.policy.compute_dtype)
        self.config, self.policy = config, policy
        self.peak = measured_peak(policy.device, kind)

    def of_step(self, trajectories: Sequence[Trajectory], phases: Metrics) -> Metrics:
        """Figures from what was trained on and the seconds of each phase."""
        seconds = sum(phases.get(phase, 0.0) for phase in OF_THE_STEP)
        actions = [turn.action for trajectory in trajectories for turn in trajectory.turns]
        images = [action for action in actions if action.modality == "image"]
        if not seconds:
            return {}
        return {
            "tokens_per_second": sum(len(a) for a in actions if isinstance(a, Tokens)) / seconds,
            "images_per_second": len(images) / seconds,
            "mfu": sum(map(self.flops, actions)) / seconds / self.peak,
        }

    def flops(self, action: Action) -> float:
        """FLOPs of sampling and training an action, see the module's docstring."""
        network, positions = self.policy.reads(action)
        weights, trained = matrix_weights(network), matrix_weights(network, trained=True)
        backward = weights + trained if trained else 0
        anchors = weights if asks_reference(self.config.objective) else 0
        scored = scored_share(action, self.config.scoring) * positions
        return 2.0 * (positions * weights + scored * (weights + backward + anchors))


def matrix_weights(network: nn.Module, trained: bool = False) -> int:
    """Weights that positions are multiplied by; embeddings are looked up, and the rest is vectors."""
    tables = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    matrices = (p for p in network.parameters() if p.ndim >= 2 and id(p) not in tables)
    return sum(p.numel() for p in matrices if p.requires_grad or not trained)


def scored_share(action: Action, scoring: ScoringConfig) -> float:
    """What an update reads of an action, as a share of what sampling it read."""
    sampling = action.sampling
    branches = 0.5 if action.modality == "image" and sampling.guidance != 1 and not sampling.scores_guided else 1.0
    if not isinstance(action, Tokens):
        trained = int(action.mask.sum())
        return branches * min(scoring.rounds or trained, trained) / max(len(action), 1)
    rounds = len(action.order.unique())
    if rounds == len(action):  # one position after another, all in one pass
        return branches
    if scoring.drawings != "rounds":
        return branches / rounds
    return branches * min(scoring.rounds or rounds, rounds) / rounds


@cache
def measured_peak(device: torch.device, kind: torch.dtype) -> float:
    """FLOP/s of a product of large square matrices: the best of three."""
    side = SIDES.get(device.type, SIDES["cuda"])
    a = torch.ones(side, side, device=device, dtype=kind)
    return max(2 * side**3 / _seconds_of_product(a) for _ in range(3))


def _seconds_of_product(a: torch.Tensor) -> float:
    if a.device.type == "cuda":
        torch.cuda.synchronize(a.device)
    start = time.perf_counter()
    product = a @ a
    if product.device.type == "cuda":
        torch.cuda.synchronize(product.device)
    return time.perf_counter() - start
