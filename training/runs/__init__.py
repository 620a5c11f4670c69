"""A run of a recipe: its folder, its models in order, resuming."""
