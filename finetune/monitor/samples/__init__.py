"""Samples: fixed prompts and seeds, sampled with the schedule and the text encoding that are being trained."""
