"""Benchmarks: `python -m tests.bench` measures everything and prints one table."""
