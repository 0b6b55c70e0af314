"""Verse: everything that only the pipelines poetry-tiny and poetry-tiny-posttrain know.

`extract` reads the corpus, `rules` cleans it, `tasks` makes instructions, preference pairs and questions, `rewards`
judges answers, `form` adds a score to the report, `results` makes docs/results-poetry-tiny.md. `verse` holds the facts
that they share. The pipelines name these modules; no other code imports them.
"""
