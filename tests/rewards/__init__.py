from collections.abc import Mapping, Sequence

from unison.rewards import judge, weigh
from unison.rewards.normalise import Normaliser
from unison.types import Metrics, RewardFn, Trajectory


def judge_and_weigh(
    trajectories: Sequence[Trajectory],
    rewards: Mapping[str, RewardFn],
    coefficients: Mapping[str, float],
    policy: object = None,
    abstain_on_error: Sequence[str] = (),
    normaliser: Normaliser | None = None,
) -> Metrics:
    """Sets every trajectory's rewards and their weighted sum, as the trainer does in two steps."""
    metrics = judge(trajectories, rewards, policy, abstain_on_error)
    weigh(trajectories, coefficients, normaliser)
    return metrics
