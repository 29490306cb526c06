"""The demo: a data set drawn by hand, a model small enough for two cores, and a check that it has learned."""
