"""Losses, optimizer, train state, step, loop, full checkpoints, metrics. Knows no benchmark and no command line."""
