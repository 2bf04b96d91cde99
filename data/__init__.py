"""Text to `Batch`, in NumPy: sources, languages, masks, mixing, packing, data state. Knows no jax and no model."""
