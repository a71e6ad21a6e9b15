"""Published numbers, to lay the results' own beside."""
