"""Looking at a run's folder from outside: from its files alone, reading little of them however long the run is."""
