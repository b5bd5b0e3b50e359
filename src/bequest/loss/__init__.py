"""Losses: terms on a chunk of logits, schedules of their weights, weighted sums, and the projection that never holds N x V."""
