"""A figure or table of the paper each."""
