"""Recipes that come with polytune, one YAML file each; `polytune train NAME` finds them by name."""
