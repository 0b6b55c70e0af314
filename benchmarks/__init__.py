"""Benchmarks of speed and memory. Each program also measures a peer and prints a table; the results are in *.md."""
