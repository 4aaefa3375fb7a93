"""Lightning callbacks: checkpoints, best student, progress, stopwatch."""
