"""The examples of a planned row, as a person wants to see them."""

from typing import Any

from data.dataset import Dataset
from data.plan import Plan
from data.tokenizer import Tokenizer

SHOWN_TOKENS = 60
"""Of each end of an example."""


def describe_examples(dataset: Dataset, plan: Plan, tokenizer: Tokenizer, row: int) -> list[dict[str, Any]]:
    """Where each example of a row comes from, its language and source, and how it begins and ends."""
    facts = dataset.facts
    examples = plan.row_examples[plan.row_offsets[row] : plan.row_offsets[row + 1]]
    tokens = dataset.read(examples)
    described = []
    for i, example in enumerate(map(int, examples)):
        ids = tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]].tolist()
        head, tail = ids[:SHOWN_TOKENS], ids[SHOWN_TOKENS:][-SHOWN_TOKENS:]
        between = " ... " if len(ids) > 2 * SHOWN_TOKENS else ""
        described.append(
            {
                "example": example,
                "from": dataset.name_example(example),
                "source": facts.sources[dataset.source[example]],
                "language": facts.languages[dataset.language[example]],
                "text": f"{tokenizer.decode(head)}{between}{tokenizer.decode(tail) if tail else ''}",
            }
        )
    return described
