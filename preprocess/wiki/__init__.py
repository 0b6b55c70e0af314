"""Extract documents from a MediaWiki dump, with WikiExtractor as a separate program.

Input: a dump, plain or bz2. Output: JSON lines of articles.
`extract` is the command; `dump` splits the dump into parts and pages; `markup` renders wikitext for WikiExtractor and
`sentences` keeps whole sentences of what it extracts. To add a template: a line in `templates.yaml`, or your own file
of the same kind (`--templates`); one with a value to compute needs a function in `values`.
"""
