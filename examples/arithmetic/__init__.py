"""Generated data for the pipeline arithmetic-tiny (`myllm run arithmetic-tiny`). `make` writes corpus and tasks."""
