"""What keeps a run well: bad steps and what follows from them, and ranks that stop or are slow."""
