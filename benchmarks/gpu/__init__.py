"""What a GPU makes of mixln, beside other trainers, in ten minutes: `python -m benchmarks.gpu`."""
