"""`runs sample`: a table of pictures over what two axes say, from a run's checkpoints."""
