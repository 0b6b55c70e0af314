"""What is worth training on: simplification, rules for prose, masking of personal data.

In: JSON lines of documents. Out: the same, fewer, with what was dropped and why beside them.
`clean` applies the rules of `quality` (`characters`, `phrases`); `simplify` is OpenCC; `privacy` masks.
"""
