"""Telling somebody who is away what has happened to a run, and that nothing is heard of it any more."""
