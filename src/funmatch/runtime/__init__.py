"""The process and its machine: files, signals, ranks, hardware, timers, allowlist."""
