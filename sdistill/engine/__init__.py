"""Sampling: token ids in, rollouts out."""
