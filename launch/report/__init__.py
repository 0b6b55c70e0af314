"""What a run shows: `report` writes report.json and report.html, `samples` what each model writes.

In: a run's folder. Out: report.html (for people), report.json (for programs).
"""
