"""The command `niwaki`."""
