"""Download, unpack and read raw text.

Input: `sources.yaml`, or your own files. Output: files in the cache, and records with their position.
`download` (`http`, `hub`, `unpack`) fetches files, `read` (`containers`, `lines`) streams records of any format,
`shapes` maps the records of each corpus to documents; `rehearsal` (`made_up`) fills a cache without downloads. To add a
corpus: an entry in `sources.yaml`, and a shape for new keys.
"""
