"""Tasks that come with polytune, one YAML file each; `polytune eval --tasks NAME` finds them by name."""
