"""Recipes: their schema, and the TOML files that ship with the package."""
