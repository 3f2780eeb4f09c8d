"""Several processes on one run: what they tell one another, and where the weights lie.

Every process rolls out and scores its own items, so their passes differ in number and shape: a reply ends early, a
drawing needs another round, a group abstains. Nothing in between may therefore wait for another process; they meet
between the phases of a step alone. A group belongs to one process, or to several next to each other, each with some
of the siblings; what they compare are rewards alone.

- `Replicas` ("ddp"): every process holds everything; gradients are summed once an optimiser step.
- `Shards` ("fsdp2"): of weights, gradients, optimiser states and the reference each process keeps a part, by PyTorch's
  `fully_shard`. The weights are gathered for a phase (a rollout, an update, an evaluation) and let go after it, not for
  every layer of every pass, which would need the same passes everywhere. docs/distributed.md says what that costs.

`DistributedDataParallel` is not used: its hooks want one backward pass over the same weights everywhere, while here
text and drawings have a pass each, over different weights, and on some processes none.
"""

from __future__ import annotations

import copy
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard

from unison.config import DistributedConfig, placement, require
from unison.policies.base import Policy
from unison.policies.reference import WeightCopy
from unison.types import Metrics

T = TypeVar("T")
SHARDS = "shards"  # folder of a checkpoint with what is spread over processes
FOREIGN = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed reduces gradients inside backward passes, which here differ between "
    "processes; for what its ZeRO shards take distributed.strategy = 'fsdp2'",
    "ACCELERATE_USE_FSDP": "choose it in the run instead, distributed.strategy = 'fsdp2', and launch with "
    "launch/fsdp2.yaml",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM has networks of its own; take distributed.strategy = 'fsdp2'",
}
"""What `accelerate` may be told to do to the model, and why it is not for this trainer."""
ARITHMETIC = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1", "it would divide the gradient; take step.micro_batch_items"),
    "ACCELERATE_MIXED_PRECISION": ("no", "the run says it, policy.compute_dtype = 'bfloat16'"),
    "ACCELERATE_DYNAMO_BACKEND": ("no", "the run says what is compiled, policy.compile_decode"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("false", "for weights in parts take distributed.strategy = 'fsdp2'"),
}
"""What else it may be told that changes numbers behind the run's back: the value that changes none, and what to do."""


def start(config: DistributedConfig, trackers: Sequence[str], folder: Path) -> Accelerator:
    """Joins the other processes, if there are any.

    Raises:
        ValueError: the launcher asks for something that this trainer does not work under.
    """
    for variable, why in FOREIGN.items():
        if os.environ.get(variable, "").lower() in ("true", "1"):
            raise ValueError(f"{variable} = {os.environ[variable]!r}, set by the `accelerate` configuration: {why}")
    for variable, (harmless, why) in ARITHMETIC.items():
        value = os.environ.get(variable, harmless)
        require(value.lower() == harmless, variable, value, f"{harmless!r} or unset: {why}")
    return Accelerator(
        **placement(),
        log_with=list(trackers),
        project_dir=str(folder),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=config.timeout))],
    )


def leave() -> None:
    """Parts from the other processes, and ends this one if there are any: the last thing that a program does.

    The interpreter is not shut down. A thread of gloo may not have let go of the last exchange's tensors yet, and does
    so in Python; if the interpreter is going by then, the process aborts (pytorch/pytorch#179291). To wait for such
    threads is no way out: they live as long as their group, which caches of `DTensor` hold.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


class Processes:
    """What processes share out and agree on. All of them must call each method, in the same order, but `share` and
    `share_of_items`.

    Args:
        per_group: so many processes next to each other have the same items, and siblings of their own; a divisor of
            their number.
    """

    def __init__(self, accelerator: Accelerator, per_group: int = 1) -> None:
        self.accelerator = accelerator
        self.count, self.index = accelerator.num_processes, accelerator.process_index
        self.is_main = accelerator.is_main_process
        self.team, self.place = divmod(self.index, per_group)
        self.teams = self.count // per_group

    def share(self, things: Sequence[T]) -> Sequence[T]:
        """This process's part of anything."""
        return things[self.index :: self.count]

    def share_of_items(self, items: Sequence[T]) -> Sequence[T]:
        """The items of which this process makes samples."""
        return items[self.team :: self.teams]

    def every(self, own: T) -> list[T]:
        """What each process has, in their order."""
        return gather_object([own]) if self.count > 1 else [own]

    def sum(self, *own: float) -> list[float]:
        """The sum of each number over all processes."""
        numbers = torch.tensor(own, device=self.accelerator.device, dtype=torch.float64)
        return self.accelerator.reduce(numbers, "sum").tolist()  # type: ignore[union-attr]

    def any(self, values: Iterable[float]) -> bool:
        """Whether any value of any process counts."""
        return self.sum(float(any(values))) != [0.0]

    def most(self, own: int) -> int:
        """The largest number of any process."""
        return max(self.every(own))

    def sums(self, own: Metrics) -> Metrics:
        """The sum of each figure over all processes, of which some may have none."""
        every = self.every(own)
        return {name: sum(part.get(name, 0.0) for part in every) for name in dict.fromkeys(n for p in every for n in p)}

    def failures(self, own: Exception | None) -> dict[int, str]:
        """What went wrong, by the number of the process in which it did."""
        told = self.every(None if own is None else str(own))
        return {number: text for number, text in enumerate(told) if text is not None}


# -- where the weights lie -------------------------------------------------------------------------------------------


class Weights(Protocol):
    """A policy's weights, gradients and optimiser states on all processes, which call each method together."""

    trained: dict[str, nn.Parameter]
    """What the optimiser changes, by name, as it lies between phases."""

    def gathered(self, reference: bool = False) -> AbstractContextManager[None]:
        """Inside it the policy computes on each process as if it were alone; with `reference`, the reference too."""
        ...

    def summed(self) -> Iterator[Tensor]:
        """The gradients of `trained` so far, summed over processes, one after another, each as its parameter lies; to
        be called in `whole`. Gradients stay as they are."""
        ...

    def reduce(self) -> None:
        """Ends `whole`: each parameter's gradient becomes the sum over processes, none where no process has one."""
        ...

    def clip(self, largest: float) -> float:
        """Scales the summed gradients down to this norm; returns the norm that they had."""
        ...

    def prepare(self, optimizer: torch.optim.Optimizer, moving: WeightCopy | None) -> Any:
        """The optimiser as it is to be used; its states, and a reference that moves, belong to checkpoints from now
        on."""
        ...

    def save(self, folder: Path) -> None:
        """Writes all that resuming needs into the folder."""
        ...

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote on any number of processes."""
        ...

    def exported(self) -> Policy:
        """The policy with all weights, for the first process to save; of no use on the others."""
        ...


def placed(policy: Policy, strategy: str, processes: Processes) -> Weights:
    """Puts the policy on its device, and its weights where the strategy wants them, those of the first process."""
    return Shards(policy, processes) if strategy == "fsdp2" else Replicas(policy, processes)


class Replicas:
    """Every process holds everything."""

    def __init__(self, policy: Policy, processes: Processes) -> None:
        self.policy, self.accelerator, self.processes = policy, processes.accelerator, processes
        self.accelerator.prepare_model(policy, evaluation_mode=True)  # on its device, in checkpoints, not wrapped
        _copy_first(policy, processes)
        self.trained = trained_of(policy)

    def gathered(self, reference: bool = False) -> AbstractContextManager[None]:
        return nullcontext()

    def summed(self) -> Iterator[Tensor]:
        for parameter in self.trained.values():
            own = _gradient(parameter)
            yield own if self.processes.count == 1 else self._sum(own)

    def reduce(self) -> None:
        if self.processes.count == 1:
            return
        for parameter in _with_gradients(list(self.trained.values()), self.processes):
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self._sum(gradient)

    def _sum(self, own: Tensor) -> Tensor:
        return cast(Tensor, self.accelerator.reduce(own, "sum"))

    def clip(self, largest: float) -> float:
        return float(self.accelerator.clip_grad_norm_(list(self.trained.values()), largest) or 0.0)

    def prepare(self, optimizer: torch.optim.Optimizer, moving: WeightCopy | None) -> Any:
        if moving is not None:
            self.accelerator.register_for_checkpointing(moving)
        return self.accelerator.prepare_optimizer(optimizer)

    def save(self, folder: Path) -> None:
        self.accelerator.save_state(str(folder))

    def load(self, folder: Path) -> None:
        self.accelerator.load_state(str(folder))

    def exported(self) -> Policy:
        return self.policy


class Shards:
    """Every process keeps a part of every parameter; alone, it keeps all.

    Blocks of the network (members of its lists of layers) are gathered one after another, so that a gather holds but
    one block twice. `fully_shard`'s hooks find the weights gathered and do nothing; gradients of a whole update
    accumulate before they are reduced.
    """

    def __init__(self, policy: Policy, processes: Processes) -> None:
        self.policy, self.processes, self.accelerator = policy, processes, processes.accelerator
        self.skeleton = _skeleton(policy)
        policy.to(self.accelerator.device)
        _copy_first(policy, processes)
        self.mesh: DeviceMesh | None = None
        self.parts: list[FSDPModule] = []
        self.kept: WeightCopy | None = None  # the reference's shards while it is whole
        self.moving: WeightCopy | None = None
        if processes.count == 1:
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # and so it shall be
        else:
            self.mesh = init_device_mesh(self.accelerator.device.type, (processes.count,))
            self._shard(self.mesh)
        self.trained = trained_of(policy)

    def _shard(self, mesh: DeviceMesh) -> None:
        # of hooks that a change in place would lose, and there is nothing for them to do
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        for module in [*_blocks(self.policy), self.policy]:
            self.parts.append(cast(FSDPModule, fully_shard(module, mesh=mesh, reshard_after_forward=False)))
        self.parts[-1].set_requires_gradient_sync(False)
        self.parts[-1].set_reshard_after_backward(False)
        self.policy([], [])  # `fully_shard` takes what runs first for the outermost module, and a rollout runs parts
        self.rest()

    @contextmanager
    def gathered(self, reference: bool = False) -> Iterator[None]:
        for part in self.parts:
            part.unshard()
        if reference and self.mesh and self.policy._frozen_copy:
            self.kept = self.policy._frozen_copy
            self.policy._frozen_copy = self.kept.each(whole_tensor)
        try:
            yield
        finally:
            self.rest()

    def rest(self) -> None:
        """Lets go of what is gathered, if anything is."""
        if self.kept is not None:
            self.policy._frozen_copy, self.kept = self.kept, None
        for part in self.parts:
            part.reshard()

    def summed(self) -> Iterator[Tensor]:
        for parameter in trained_of(self.policy).values():
            yield self._scattered(_gradient(parameter))

    def reduce(self) -> None:
        if not self.mesh:
            return
        own = trained_of(self.policy)
        used = {id(p) for p in _with_gradients(list(own.values()), self.processes)}
        gradients = {name: p.grad for name, p in own.items() if id(p) in used}
        for parameter in own.values():
            parameter.grad = None
        self.rest()
        for name in list(gradients):
            gradient, parameter = gradients.pop(name), self.trained[name]
            if gradient is None:
                gradient = torch.zeros(parameter.shape, dtype=parameter.dtype, device=parameter.device)
            parameter.grad = self._scattered(gradient)

    def _scattered(self, own: Tensor) -> Tensor:
        """This process's part of the sum of whole tensors over processes."""
        if not self.mesh:
            return own
        return DTensor.from_local(own, self.mesh, [Partial()], run_check=False).redistribute(placements=[Shard(0)])

    def clip(self, largest: float) -> float:
        parameters = list(self.trained.values())
        total = whole_tensor(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        torch.nn.utils.clip_grads_with_norm_(parameters, largest, total)
        return float(total)

    def prepare(self, optimizer: torch.optim.Optimizer, moving: WeightCopy | None) -> Any:
        self.optimizer, self.moving = optimizer, moving
        for parameter in self.trained.values():  # as AdamW would begin them, so that they can be loaded into
            zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.zeros(()), **zeros}
        return optimizer

    def save(self, folder: Path) -> None:
        self.rest()
        self.accelerator.save_state(str(folder))  # schedule, random states, what else is registered
        save_shards(self._state(), checkpoint_id=folder / SHARDS, no_dist=not self.mesh)

    def load(self, folder: Path) -> None:
        """
        Raises:
            ValueError: the checkpoint was written under another strategy.
        """
        if not (folder / SHARDS).is_dir():
            raise ValueError(f"{folder} holds no {SHARDS}: resume it with the distributed.strategy it was saved under")
        self.accelerator.load_state(str(folder))
        load_shards(self._state(), checkpoint_id=folder / SHARDS, no_dist=not self.mesh)

    def _state(self) -> dict[str, Any]:
        """What is spread over processes; weights that are not trained are those of the run's own checkpoint."""
        weights = {name: p.detach() for name, p in self.trained.items()}
        moments = {name: self.optimizer.state[p] for name, p in self.trained.items()}
        state = {"weights": weights, "optimizer": moments}
        return state | ({"reference": self.moving.state_dict()} if self.moving else {})

    def exported(self) -> Policy:
        if not self.mesh:
            return self.policy
        gathered: dict[int, nn.Parameter] = {}
        for parameter in self.policy.parameters():  # one at a time, for only the first process has to hold them all
            full = whole_tensor(parameter.detach())
            if self.processes.is_main:
                gathered[id(parameter)] = nn.Parameter(full.cpu(), parameter.requires_grad)
        if not self.processes.is_main:
            return self.skeleton
        policy = copy.deepcopy(self.skeleton)
        names = self.policy.named_parameters(remove_duplicate=False)
        policy.load_state_dict({name: gathered[id(p)] for name, p in names}, strict=False, assign=True)
        return policy


def trained_of(policy: Policy) -> dict[str, nn.Parameter]:
    """The parameters of the network that are trained, by name."""
    return {name: p for name, p in policy.network.named_parameters() if p.requires_grad}


def norm(tensors: Iterable[Tensor]) -> float:
    """The norm of all tensors together, whole or in shards."""
    single = [whole_tensor(torch.linalg.vector_norm(tensor)) for tensor in tensors]
    return float(torch.linalg.vector_norm(torch.stack(single)))


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()


def _with_gradients(parameters: Sequence[nn.Parameter], processes: Processes) -> list[nn.Parameter]:
    """Those to which the loss of any process has a gradient: the optimiser leaves the others alone, as it would with
    one process."""
    counts = processes.sum(*(float(p.grad is not None) for p in parameters))
    return [p for p, count in zip(parameters, counts, strict=True) if count]


def _copy_first(policy: Policy, processes: Processes) -> None:
    """The weights become the first process's: new ones, such as adapters', are drawn at random."""
    if processes.count > 1:
        for parameter in policy.parameters():
            torch.distributed.broadcast(parameter.data, 0)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost members of lists of layers, as far as they have parameters and parts."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (
                layer
                for layer in child
                if any(True for _ in layer.children()) and any(True for _ in layer.parameters())
            )
        else:
            yield from _blocks(child)


def _skeleton(policy: Policy) -> Policy:
    """A copy of the policy whose parameters have shapes but no values."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in policy.parameters()}
    return copy.deepcopy(policy, memo)


def whole_tensor(tensor: Tensor) -> Tensor:
    """The tensor, gathered if it is in shards; then all processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
