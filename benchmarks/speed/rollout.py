"""Sampling a group of drawings of one prompt with guidance, against `transformers`' own image generation.

Both do the same work: `group` conditional and `group` unconditional rows, one token a pass, the same weights and type.
Neither decodes pixels. `transformers` prefills every row and attends over a cache of full length from the first token;
Unison computes the prompt once, attends over what is filled, and sends each token through a step of its own, with
weights packed once a rollout (`unison/policies/decoding/cpu.py`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unison.policies.janus.policy import Janus
from unison.types import Context, Sampling

PROMPT = "a red circle to the left of two blue squares, and a green triangle above a yellow star"
GREEDY = 1e-5  # a temperature that leaves no choice


def sides(policy: Janus, group: int, guidance: float, greedy: bool = False) -> dict[str, Callable[[], Tensor]]:
    """Samplers of one group, each giving token ids [G, L]; `greedy` ones give the same ids."""
    context = Context((PROMPT,))
    sampling = Sampling(temperature=GREEDY if greedy else 1.0, guidance=guidance)
    (ids,) = policy._pieces(context, "image")  # a prompt of text is one run of ids
    prompt = torch.tensor([ids])

    def unison() -> Tensor:
        drawings = policy.draw([context] * group, sampling, range(group))
        return torch.stack([drawing.ids for drawing in drawings])  # type: ignore[union-attr]

    def transformers() -> Tensor:
        return policy.network.generate(  # type: ignore[return-value]
            prompt,
            attention_mask=torch.ones_like(prompt),  # type: ignore[arg-type]
            generation_mode="image",
            num_return_sequences=group,
            guidance_scale=guidance,
            do_sample=True,
            top_k=1 if greedy else 0,  # 0 is off: all of the codebook, as Unison
        )

    return {"unison": unison, "transformers": transformers}
