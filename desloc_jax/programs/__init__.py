"""What is read off programs: what a jaxpr sends, what XLA made of it."""
