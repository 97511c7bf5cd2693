"""Nothing here is visible to Python: use `CommandTable.keys` in `lookup`."""
