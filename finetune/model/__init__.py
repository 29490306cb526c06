"""Model families: loading, long prompts and what trains."""
