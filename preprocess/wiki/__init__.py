"""A MediaWiki dump to documents, with WikiExtractor as a program.

In: a dump, plain or bz2. Out: JSON lines of articles.
`extract` is the command; `dump` cuts the dump into parts and pages; `markup` makes wikitext ready for WikiExtractor.
"""
