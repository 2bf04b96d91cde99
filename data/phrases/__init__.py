"""Instruction phrasings, one YAML file per language, written for polytune. Read them with `data.phrasebook`.

Every file has the same tasks; each task has a `train` and a `heldout` list. Placeholders: {x} is what is
asked about, {language} the language to answer in, {rule} a rewrite rule. Write {x} so that it never needs
inflecting (in quotes, or after a colon), keep phrasings short, reuse the training words in the held-out
ones, and let the phrasings of rewrite, copy, reverse and sort end in {x}.
"""
