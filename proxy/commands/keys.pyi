"""Nothing here is visible to Python: `CommandTable.keys` in `lookup` is the way in."""
