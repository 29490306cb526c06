"""Asking something of a run that goes on."""
