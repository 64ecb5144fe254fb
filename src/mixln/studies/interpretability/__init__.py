"""What norms do to the tools of interpretability: measures on request, a module for each with an `ENTRY`."""
