"""Rehearse a pipeline: the same commands in small, before anything expensive starts.

`rehearse` is the command; `shrink` says what a rehearsal changes in each command, `model` how a model is made smaller,
`table` what is told at the end.
"""
