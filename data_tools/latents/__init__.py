"""Encoding the pictures of a recipe once, before training."""
