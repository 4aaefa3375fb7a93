"""Process and machine: atomic files, preemption, ranks, hardware, timer, allowlist."""
