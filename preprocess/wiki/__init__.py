"""Extract documents from a MediaWiki dump, with WikiExtractor as a separate program.

Input: a dump, plain or bz2. Output: JSON lines of articles.
`extract` is the command; `dump` splits the dump into parts and pages; `markup` cleans wikitext for WikiExtractor.
"""
