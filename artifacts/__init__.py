"""Code shared by all stages: atomic file writes, errors for the user, the folders of a run, processes, statistics.

Importing it needs only the standard library. It imports none of the project's other packages."""
