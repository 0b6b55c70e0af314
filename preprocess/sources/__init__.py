"""Where text comes from: download, unpack, read.

In: `sources.yaml`, or files of one's own. Out: files in the cache; records with their place.
`download` (`http`, `unpack`) fetches, `read` (`containers`, `lines`) streams records of any form, `shapes` says how a
record of each corpus becomes a document. To add a corpus: an entry in `sources.yaml`, and a shape if its keys are new.
"""
