"""Which examples are left out, and why: named predicates over conversations, off unless a recipe asks for them.

`checks.py` judges one conversation at a time, in any process; `duplicates.py` looks at all of them together, from
signatures of fixed size; `report.py` counts. The configuration is `data/cleaning_config.py`.
"""
