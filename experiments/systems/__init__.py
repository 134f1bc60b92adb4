"""Measurements of machines: links, memory, time, and what breaks."""
