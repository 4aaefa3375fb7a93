"""Rank, local rank and world size of this process, known before torch is imported."""

import os


def rank() -> int:
    """Of this process among those that train one run together; known before torch is imported."""
    names = ("RANK", "SLURM_PROCID") if by_srun() else ("RANK",)
    return int(next((os.environ[name] for name in names if name in os.environ), 0))


def local_rank() -> int:
    """Likewise, among those on this machine."""
    return int(os.environ.get("SLURM_LOCALID" if by_srun() else "LOCAL_RANK", 0))


def world_size() -> int:
    """Of how many such processes this is one."""
    return int(os.environ.get("SLURM_NTASKS" if by_srun() else "WORLD_SIZE", 1))


def is_rank() -> bool:
    """Whether this process is one of several that somebody has started to train together."""
    return "RANK" in os.environ or by_srun()


def by_srun() -> bool:
    """Whether srun has started several tasks, of which this process is one."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1
