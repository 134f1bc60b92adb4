"""What a run is made of, from its configuration: optimizer, syncs, fragments, mesh and data."""
