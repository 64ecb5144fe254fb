"""What happens between the steps of a run: faults, metrics, trackers, measurements of layers, validation."""
