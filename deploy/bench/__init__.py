"""Time engines, record what was measured, and gate a release on it."""
