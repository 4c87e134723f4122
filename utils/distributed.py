"""The processes of a torchrun: their ranks, and what they tell each other. Without torchrun there is one process."""
import ctypes
import os
import signal
import sys
from datetime import timedelta

from utils.image import ImageError


def ranks():
    """Return (rank, number of processes): (0, 1) unless started by torchrun, where the process group is joined."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return 0, 1
    import torch  # here and below, so that the stages that learn nothing do not wait for it
    import torch.distributed as dist

    if not dist.is_initialized():
        if sys.platform == "linux":  # end when the parent does: workers of a torchrun that was killed would wait for each other
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)
        gpu = torch.cuda.is_available() and dist.is_nccl_available()
        patience = timedelta(days=365)  # a process that has no photograph left waits for one that may learn for hours
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=patience)
    return dist.get_rank(), dist.get_world_size()


def leave_ranks():
    """Leave the process group of torchrun, if there is one."""
    if "RANK" in os.environ:
        import torch.distributed as dist

        if dist.is_initialized():  # not earlier: some versions of torch hang where a DistributedDataParallel outlives its group
            dist.destroy_process_group()


def gather(value):
    """Return the values of all processes in a list. Raises ImageError where one of them has ended early."""
    world = ranks()[1]
    if world == 1:
        return [value]
    import torch.distributed as dist

    values = [None] * world
    try:
        dist.all_gather_object(values, value)
    except RuntimeError:
        raise ImageError("another process of this run has ended early; see what it says") from None
    return values


def wait_for_ranks():
    """Wait until every process has come to this call."""
    gather(None)
