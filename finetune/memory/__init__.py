"""Memory of a GPU: predicted without one, and filled where there is one."""
