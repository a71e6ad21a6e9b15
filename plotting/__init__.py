"""From results to figures and the report.

Start with `parts/tables.py` (results as figures read them), `parts/export.py` (what a figure declares) and a short
figure, `plot_ioi_backup.py`. `make_report.py` finds all of them and puts them on one page.
"""
