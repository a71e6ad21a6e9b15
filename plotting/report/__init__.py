"""What `make_report.py` puts on its page, part by part; `page` puts the parts together with `assets/`."""
