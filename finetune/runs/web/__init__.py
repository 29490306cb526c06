"""Runs over HTTP, from their files alone: a page for a phone, a probe, and figures for Prometheus."""
