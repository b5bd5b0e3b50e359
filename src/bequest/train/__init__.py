"""The one training loop and what goes in and out of it: plan, run, checkpoint."""
