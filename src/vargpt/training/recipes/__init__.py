"""Recipes: schema, reading, overrides."""
