"""Scores of models on tasks, with the constants that they must beat, intervals and paired tests."""
