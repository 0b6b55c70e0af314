"""Sums: a pipeline whose data is made by code (`myllm run arithmetic-tiny`). `make` writes the corpus and the tasks."""
