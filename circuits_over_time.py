"""The library."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent
_INSTALLED = _HERE / "_circuits_over_time"
# This module is also the package that holds `utils`, `plotting` and `edge_attribution_patching`: as
# `circuits_over_time.utils` they cannot be taken for a user's own `utils`, whichever comes first on the path.
# In a checkout they are beside this file; a wheel has them in a folder of their own.
__path__ = [str(_INSTALLED if _INSTALLED.is_dir() else _HERE)]
