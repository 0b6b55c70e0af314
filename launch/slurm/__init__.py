"""Pipelines as Slurm jobs.

In: a pipeline and a site file (site/). Out: a chain of jobs, whose states `myllm status` shows.
`submit` freezes the code and submits, `job` runs one stage inside a job, `scheduler` asks Slurm, `site` reads the site
file, `preflight` looks at the nodes. The sbatch scripts beside them can be submitted by hand.
"""
