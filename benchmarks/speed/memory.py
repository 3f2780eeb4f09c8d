"""Peak memory of the log-probabilities of guided image tokens and their gradient.

`tokens.score` goes through the codebook's logits in chunks and computes them again in the backward pass. The other side
is the formula on all rows at once, which holds [N, V] logits of both branches and what comes of them.

Each side runs in a process of its own, which reports the growth of its peak resident memory (Linux's VmHWM) over the
model and its inputs: nothing an allocator or a profiler might leave out.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAEHead

from unison.policies.decisions import tokens
from unison.types import Sampling

Side = Literal["chunked", "whole"]
SIDES: tuple[Side, ...] = ("chunked", "whole")
SAMPLING = Sampling(guidance=5.0)


@dataclass(frozen=True)
class Problem:
    """Sizes of the log-probabilities to compute."""

    decisions: int
    """Image tokens, N."""
    width: int
    """Of the hidden states, D."""
    codes: int
    """Of the codebook, V."""


@dataclass(frozen=True)
class Measured:
    """What a process reports."""

    megabytes: float
    """Growth of the peak resident memory."""
    logp: float
    """Mean log-probability, to check that both sides compute the same."""
    gradient: float
    """Norm of the gradient of head and hidden states, likewise."""


def measure(side: Side, problem: Problem, threads: int) -> Measured:
    """Runs one side in a fresh process."""
    job = json.dumps({"side": side, "threads": threads, **asdict(problem)})
    command = [sys.executable, "-m", "benchmarks.speed.memory", job]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    return Measured(**json.loads(done.stdout))


def _run(side: Side, problem: Problem) -> Measured:
    torch.manual_seed(0)
    width = problem.width
    config = JanusVQVAEConfig(num_embeddings=problem.codes, image_token_embed_dim=width, projection_dim=width)
    head = JanusVQVAEHead(config)
    hidden, unconditional = (torch.randn(problem.decisions, width).requires_grad_() for _ in range(2))
    ids = torch.randint(problem.codes, (problem.decisions,))
    head(hidden[:1]).sum().backward()  # what the libraries set up at their first use is no part of the figure
    before = peak_megabytes()
    logp = (tokens.score if side == "chunked" else score_whole)(head, hidden, ids, SAMPLING, unconditional)
    logp.mean().backward()
    grown = peak_megabytes() - before
    return Measured(grown, logp.mean().item(), _norm([*head.parameters(), hidden, unconditional]))


def score_whole(head: nn.Module, hidden: Tensor, ids: Tensor, sampling: Sampling, unconditional: Tensor) -> Tensor:
    """`tokens.score` as one would first write it."""
    conditional_logits, unconditional_logits = head(hidden), head(unconditional)
    logits = unconditional_logits + sampling.guidance * (conditional_logits - unconditional_logits)
    return torch.log_softmax(logits / sampling.temperature, dim=-1).gather(-1, ids[:, None]).squeeze(-1)


def _norm(leaves: list[Tensor]) -> float:
    return torch.cat([leaf.grad.flatten() for leaf in leaves if leaf.grad is not None]).norm().item()


def peak_megabytes(anew: bool = False) -> float:
    """Peak resident memory of this process, of Linux; `anew` counts from now on."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    # not getrusage: there the peak of the parent process counts too
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    side = job.pop("side")
    torch.set_num_threads(job.pop("threads"))
    print(json.dumps(asdict(_run(side, Problem(**job)))))
