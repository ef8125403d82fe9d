"""The command ``niwaki``."""
