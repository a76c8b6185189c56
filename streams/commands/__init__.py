"""The commands of `tidegate`, one file each. Importing one is cheap: what it needs is imported when it runs."""
