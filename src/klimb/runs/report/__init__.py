"""The report of a run: one HTML file that opens anywhere, with its data inside and nothing fetched.

Numbers are averaged in Python and drawn by `assets/charts.js`.
"""

from klimb.runs.report.page import write_report as write_report
