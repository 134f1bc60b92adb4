"""DES-LOC as an optax transformation; `transform.py` is the file to read first."""
