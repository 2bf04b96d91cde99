"""What predicates look at: parts of a conversation, folded so that spelling variants meet."""

import re
import unicodedata

from data.cleaning_config import Part
from data.schema import TEXT_ROLE, Conversation

ROLES: dict[Part, tuple[str, ...]] = {
    "answer": ("assistant", TEXT_ROLE),
    "prompt": ("user",),
    "conversation": ("user", "assistant", TEXT_ROLE),
}
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|www\.\S+", re.DOTALL)
# Signs that are not seen or carry no sound: joiners, direction marks, soft hyphens, Arabic tatweel and vowel signs.
IGNORED = dict.fromkeys([0xAD, 0x61C, 0x640, 0x670, 0xFEFF, *range(0x200B, 0x2010), *range(0x202A, 0x202F)])
IGNORED |= dict.fromkeys([*range(0x2060, 0x2065), *range(0x64B, 0x653)])
FOLDED = IGNORED | dict.fromkeys(map(ord, "‘’ʼ`´＇"), "'") | {ord("ı"): "i"}


def read_part(conversation: Conversation, part: Part) -> str:
    """Returns the contents of the part's turns, stripped, one after another; "" where it has none."""
    roles = ROLES[part]
    turns = (turn for turn in conversation.turns if turn.role in roles)
    return "\n".join(turn.content.strip() for turn in turns)


def fold(text: str) -> str:
    """Returns text that compares equal whatever its case, width, composition, spacing, apostrophes, invisible signs,
    Arabic vowel signs and Turkish dots: NFKC, case-folded, one space between words.

    `fold("Don’t  STOP") == "don't stop"`
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold().translate(FOLDED))
    return " ".join(folded.replace("i\u0307", "i").split())


def leave_out_code(text: str) -> str:
    """Returns the text without what stands between backticks and without addresses, which have no language."""
    return CODE.sub(" ", text)
