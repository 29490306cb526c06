"""The life of a run's processes: how they are asked to stop, that there is one launch, what a start may change."""
