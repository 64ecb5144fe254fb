"""Speed and memory of training, measured side by side with other trainers. See benchmarks/README.md."""
