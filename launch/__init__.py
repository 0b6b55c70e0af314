"""The `myllm` command, and the stages that start an upstream tool."""
