"""Recipes: what the user asks for. YAML outside, frozen and validated inside."""
