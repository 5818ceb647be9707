"""Training in several processes: all negatives with gradients, averaged gradients, one writer.

Nothing here starts processes: ``torchrun`` does, and accelerate joins them (gloo on CPUs, NCCL on GPUs).
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch

# its functions take the process group at import as a default: imported later, they would keep gloo's
# threads alive after _leave
import torch.distributed.nn.functional
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from torch import Tensor
from torch import distributed as dist


def join_processes(mixed_precision: str) -> Accelerator:
    """Return an Accelerator that joined all started processes.

    Raises:
        RuntimeError: If the environment names more processes than joined. Without this check
            each would train alone, silently.
    """
    promised = int(os.environ.get("WORLD_SIZE", 1))
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed_precision:
        # accelerate keeps the first precision of the process and would refuse a second training
        # (a notebook's, the app's) at another; the processes stay joined
        AcceleratorState._reset_state(reset_partial_state=False)
    # accelerate joins processes without a GPU only if told to use the CPU
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=promised > 1 and not torch.cuda.is_available())
    if accelerator.num_processes != promised:
        raise RuntimeError(
            f"{promised} processes were started but {accelerator.num_processes} joined; start them with "
            "'torchrun --standalone --nproc_per_node N -m fusemix.cli.train ...'."
        )
    if promised > 1:
        atexit.register(_leave)
    return accelerator


def share_of_work() -> tuple[int, int, Callable[[], None]]:
    """Return this process's rank, the number of processes, and a barrier; a single process without torchrun.

    For work that is divided into pieces and exchanges only files.

    Raises:
        RuntimeError: If the environment names more processes than joined.
    """
    promised = int(os.environ.get("WORLD_SIZE", 1))
    if promised == 1:
        return 0, 1, lambda: None
    state = PartialState(cpu=True, timeout=timedelta(days=30))  # how long one may wait for the others
    if state.num_processes != promised:
        raise RuntimeError(
            f"{promised} processes were started but {state.num_processes} joined; start them by torchrun."
        )
    atexit.register(_leave)
    return state.process_index, promised, state.wait_for_everyone


def _leave() -> None:
    """Close the connections before the interpreter exits: a gloo thread that outlives it aborts the process."""
    if dist.is_initialized():
        dist.destroy_process_group()


def row_counts(x: Tensor) -> list[int]:
    """Return the number of rows in every process, in order of rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [len(x)]
    counts = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(x)], device=x.device))
    return [int(count) for count in counts]


def gather(x: Tensor, counts: list[int]) -> Tensor:
    """Gather the rows of all processes in order of rank: (n, D) -> (N, D); gradients flow back to their process.

    ``accelerator.gather`` and ``torch.distributed.all_gather`` cut the gradient: negatives of other
    processes would then contribute nothing.

    Args:
        x: This process's rows.
        counts: :func:`row_counts` of it.
    """
    if len(counts) == 1:
        return x
    out: Tensor = _Gather.apply(x, counts)  # type: ignore[no-untyped-call]
    return out


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        ctx.counts, most = counts, max(counts)
        padded = torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])])  # all_gather takes equal shapes
        pieces = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(pieces, padded)
        return torch.cat([piece[:count] for piece, count in zip(pieces, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None]:
        whole = gradient[0].contiguous()
        dist.all_reduce(whole)  # each process's loss reaches these rows
        return whole.split(ctx.counts)[dist.get_rank()], None


def same_start(model: torch.nn.Module) -> None:
    """Give every process the first one's weights."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


def mean_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes, in one message."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Return whether the flag is set in any process; a signal may reach one of them a step before the others."""
    if accelerator.num_processes == 1:
        return flag
    votes = torch.tensor([float(flag)], device=accelerator.device)
    dist.all_reduce(votes)
    return bool(votes.item() > 0)
