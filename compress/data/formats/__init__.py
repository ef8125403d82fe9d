"""Data sets as people have them: one file for each format."""
