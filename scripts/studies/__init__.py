"""Studies of the recipe: one study a module."""
