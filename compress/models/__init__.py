"""Networks by name: factories, weights, and the families that Niwaki knows."""
