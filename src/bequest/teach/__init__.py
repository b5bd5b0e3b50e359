"""Predecessors that are asked about a batch: live models, and placebos in their place."""
