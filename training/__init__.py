"""Scripts that train the small heads in `guards/heads`; nothing here runs in production."""
