"""Studies: a function each for comparing, diagnosing, pruning, healing, removing norms."""
