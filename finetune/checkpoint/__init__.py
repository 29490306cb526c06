"""Checkpoints: stored atomically, verified, resumed, exported."""
