"""LoRA adapters as `peft` makes them: merging for export."""

from __future__ import annotations

import copy
from typing import Any

from unison.policies.base import Policy


def merged(policy: Policy) -> Any:
    """The network with its adapters folded into the weights; the policy itself is left as it is."""
    if not policy._adapted:
        return policy.network
    return copy.deepcopy(policy._adapted[0]).merge_and_unload()
