"""Report on a run: `report` writes report.json and report.html, `samples` lets each model answer the same prompts.

Input: a run's folder. Output: report.html (for people), report.json (for programs).
"""
