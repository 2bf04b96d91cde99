"""Parity with transformers: tiny configs of every family, values from torch, and the script that pins them."""
