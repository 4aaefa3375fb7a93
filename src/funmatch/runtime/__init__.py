"""Process and machine: atomic files, preemption, ranks, all-reduce, hardware, timer, log.

Also the allowlist, the variables of `.env`, secrets, and the differences between Hydra's versions.
"""
