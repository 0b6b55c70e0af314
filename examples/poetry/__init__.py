"""Code for Chinese verse that only the pipelines poetry-tiny and poetry-tiny-posttrain use.

`extract` reads the corpus, `rules` cleans it, `tasks` makes instructions, preference pairs and questions, `rewards`
scores answers, `form` adds a score to the report, `results` makes docs/results-poetry-tiny.md. `verse` has the
definitions that they share. The pipelines name these modules; no other code imports them.
"""
