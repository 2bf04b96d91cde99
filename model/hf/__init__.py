"""Hugging Face folders: their tensors, their configs, and how both map to this project's."""
