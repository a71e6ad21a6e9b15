"""The report's parts: what `plotting/make_report.py` puts on its page."""
