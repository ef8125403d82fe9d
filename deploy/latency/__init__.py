"""Ask a runtime how long layers take at each width, keep the answers as tables, and explain where time goes."""
