"""Sweeps of runs: arms against arms at equal cost, with tuned learning rates, seeds and placebos, and what came out."""
