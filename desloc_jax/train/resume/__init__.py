"""How a run begins, or goes on from a checkpoint; `restore.py` is the file to read first."""
