"""Pack, verify and sign bundles, and build their engines on the device."""
