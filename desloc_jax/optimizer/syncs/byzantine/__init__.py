"""Averages that bear workers that lie, and the lies."""
