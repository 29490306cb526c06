"""The noise schedule and the objective: torch only."""
