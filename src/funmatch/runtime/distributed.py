"""Rank, local rank and world size of this process, from the environment, without torch."""

import os


def rank() -> int:
    """Global rank of this process, from RANK or srun; 0 if it runs alone."""
    names = ("RANK", "SLURM_PROCID") if by_srun() else ("RANK",)
    return int(next((os.environ[name] for name in names if name in os.environ), 0))


def local_rank() -> int:
    """Rank of this process among those on this machine; 0 if it runs alone."""
    return int(os.environ.get("SLURM_LOCALID" if by_srun() else "LOCAL_RANK", 0))


def world_size() -> int:
    """Number of processes that train this run together."""
    return int(os.environ.get("SLURM_NTASKS" if by_srun() else "WORLD_SIZE", 1))


def is_rank() -> bool:
    """Returns True if torchrun, srun or our launcher started this process as a rank."""
    return "RANK" in os.environ or by_srun()


def by_srun() -> bool:
    """Returns True if this process is one of several tasks of an srun step, and a rank by itself.

    A task that is torchrun starts the ranks, and says so to them.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return False
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1
