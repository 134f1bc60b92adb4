"""The trainer: from `main.py` by `loop.py`, `job.py` and `program.py` to `step.py`."""
