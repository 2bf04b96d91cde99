"""Forms of rows that are read without a mapping: from named fields to turns, each form a table entry and a reader."""
