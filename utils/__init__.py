"""Shared helpers, one subject per module."""
