"""Pipelines: the stages of a run, read from `launch/pipelines/<name>.yaml`, run one after another.

In: a pipeline's YAML. Out: `runs/<name>/`, with a manifest for each stage that is done.
`definition` reads and checks the YAML, `runner` starts the stages and skips what is done, `gpu_notice` says which
hardware a run uses. To add a stage: write it into the YAML; its commands are `myllm` commands or any program.
"""
