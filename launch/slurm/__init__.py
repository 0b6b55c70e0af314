"""Run pipelines as Slurm jobs.

Input: a pipeline and a site file (site/). Output: a chain of jobs, whose states `myllm status` shows.
`submit` copies the code and submits, `job` runs one stage inside a job, `scheduler` calls Slurm's commands, `site`
reads the site file, `preflight` checks the nodes. The sbatch scripts in this folder can also be submitted by hand.
"""
