"""What is wrong with one checkpoint and no other."""

from __future__ import annotations

from utils.errors import UserError


class CheckpointUnusable(UserError):
    """One checkpoint is missing or damaged. A sweep reports it and goes on with the others."""
