"""The one exception that is meant for users."""


class UserError(Exception):
    """Bad input, told in one line: what is wrong, where, the value, and the way out. Ends a script with exit code 2."""
