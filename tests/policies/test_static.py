"""The decoding step of static shapes: the states of the general path, eagerly and compiled."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.policies.test_decode import LENGTHS, ROWS, STEPS, inputs, llama, stepped
from unison.policies.decoding import causal, graph
from unison.policies.janus.policy import Janus
from unison.types import Context, Sampling

NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


@torch.no_grad()
def statically_stepped(network: Any, compiled: bool) -> tuple[Tensor, list[Tensor]]:
    """States of the later positions [B, STEPS, D], and the mask of each step as the network saw it."""
    prefixes, later = inputs()
    done = causal.run_prefixes(network, prefixes)
    done.cache.continue_with(ROWS, STEPS)
    visible = F.pad(done.visible[ROWS], (0, STEPS), value=True)
    step = graph.StaticStep(network, done.cache.layers, visible, done.lengths[ROWS], max(LENGTHS), compiled)
    shapes = [x.shape for layer in step.layers for x in layer]
    states = torch.stack([step(x) for x in later.unbind(1)], 1)
    assert [x.shape for layer in step.layers for x in layer] == shapes
    return states, [k for k, _ in step.cache()]


@pytest.mark.parametrize("heads", [4, 2])
def test_the_static_step_gives_the_states_of_the_general_path(heads: int) -> None:
    network = llama(num_key_value_heads=heads)
    states, keys = statically_stepped(network, compiled=False)
    assert torch.allclose(states, stepped(network, *inputs()), atol=1e-5)
    assert {k.shape[2] for k in keys} == {max(LENGTHS) + STEPS}


@NEEDS_COMPILER
@pytest.mark.slow
def test_compiled_it_gives_the_same_and_is_compiled_once() -> None:
    network = llama(num_hidden_layers=1)
    eager, _ = statically_stepped(network, compiled=False)
    torch._dynamo.utils.counters.clear()
    compiled, _ = statically_stepped(network, compiled=True)
    assert torch.allclose(compiled, eager, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_policy_that_steps_statically_draws_and_writes_the_same(
    make_policy: Callable[..., Janus], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "compiled_step", lambda: graph.step)
    contexts, sampling = [Context(("a red circle",))] * 2, Sampling(max_tokens=6, guidance=3.0)
    own, plain = make_policy(compile_decode=True, rows_writing=1), make_policy()
    for verb in ("write", "draw"):
        for one, other in zip(*(getattr(p, verb)(contexts, sampling, range(2)) for p in (own, plain)), strict=True):
            assert one.ids.tolist() == other.ids.tolist()
            assert torch.allclose(one.logp, other.logp, atol=1e-4)
