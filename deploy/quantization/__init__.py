"""Eight bits and half precision."""
