"""Does the drawing match its prompt in the policy's own eyes: CoRL's matching reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unison.rewards.models import clamp, greedy_matches, judge_pairs
from unison.types import Trajectory

if TYPE_CHECKING:
    from PIL.Image import Image


def matching(trajectories: Sequence[Trajectory], policy: Any) -> list[float | None]:
    """Symmetric greedy matching of image and text tokens in the policy's last layer (CoRL's R_TIM), in [0, 1].

    The last drawing and its prompt are read as one user turn. Every image token is matched to the text token with the
    nearest last hidden state and every text token to its nearest image token; the reward is the mean of the two mean
    cosines, clamped at 0. It changes with the policy that is trained. None where there is no drawing or no prompt.

    Source: CoRL, arXiv 2505.17534, R_TIM. The clamp is ours: it leaves all but negative means as in the paper.
    """

    def judge(images: list[Image], prompts: list[str]) -> list[float | None]:
        pairs = policy.hidden_states(images, prompts)
        return [clamp(sum(greedy_matches(i, t)) / 2) if len(t) else None for i, t in pairs]

    return judge_pairs(trajectories, judge)
