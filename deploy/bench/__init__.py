"""Timing, records and the gate."""
