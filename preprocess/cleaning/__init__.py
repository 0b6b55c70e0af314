"""Clean documents: quality filter, conversion to Simplified Chinese, masking of personal data.

Input: JSON lines of documents. Output: the kept documents, and beside them the dropped ones with the reason.
`clean` applies the rules of `quality` (`characters`, `phrases`); `simplify` runs OpenCC; `privacy` masks personal data.
"""
