"""Faults injected into real runs: `python -m experiments.systems.faults`."""
