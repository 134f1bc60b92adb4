"""What a run writes besides its checkpoints: its folder, metrics and plot."""
