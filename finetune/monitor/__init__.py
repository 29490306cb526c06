"""Watching a run: metrics, events, status, ledger, samples and trackers."""
