"""What is done with the models of a comparison after they are trained, step by step: fine-tuning, evaluation."""
