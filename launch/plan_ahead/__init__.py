"""What a recipe needs of machines that are not here: the training step compiled ahead of time, and read."""
