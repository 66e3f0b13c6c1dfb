"""The trainer: configuration, loop, step, checkpoints."""
