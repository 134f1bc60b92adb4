"""Models that leave the house and come in: a run's checkpoints and Hugging Face folders as models."""
