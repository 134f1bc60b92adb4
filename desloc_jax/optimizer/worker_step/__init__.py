"""One step of a worker: what is due, what is sent of it, and where it lands."""
