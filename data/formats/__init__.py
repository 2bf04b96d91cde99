"""Readers of file formats: from files to rows of named fields, in chunks that any process can read."""
