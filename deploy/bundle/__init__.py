"""Bundles: packed, verified, signed, and their engines built on the device."""
