"""Benchmarks: problems × adapters → one table and one JSON file. `python -m benchmarks --help`, and README.md."""
