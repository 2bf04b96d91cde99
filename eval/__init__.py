"""Tasks, requests, scoring, statistics and reports: programs over a checkpoint path. Imports nothing of `train`."""
