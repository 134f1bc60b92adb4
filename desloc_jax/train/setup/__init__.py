"""What a run is made of, from its configuration: optimizer, periods, syncs, fragments, mesh, data."""
