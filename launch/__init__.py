"""Recipes, overrides, the command line and the programs behind its verbs. No arithmetic."""
