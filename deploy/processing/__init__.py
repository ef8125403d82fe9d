"""What comes before and after a network, in NumPy and Pillow alone."""
