"""Pipelines: run the stages of `launch/pipelines/<name>.yaml` one after another.

Input: a pipeline's YAML. Output: `runs/<name>/`, with a manifest for each finished stage.
`definition` reads and checks the YAML, `runner` starts the stages and skips finished ones, `gpu_notice` says which
hardware a run uses. To add a stage, write it into the YAML; its commands are `myllm` commands or any program.
"""
