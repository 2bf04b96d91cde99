"""Chat templates: structured turns to ids, roles and loss weights; which one a run uses, and how it is kept."""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec

from data.control_template import ControlTemplate
from data.encoded import ANSWERS_ALONE, Encoded
from data.schema import Conversation, DataError, Turn
from data.sentencepiece_tokenizer import SentencePieceTokenizer
from data.source_config import LossConfig
from data.template import JinjaTemplate
from data.tokenizer import Tokenizer

SHIPPED = Path(__file__).parent / "templates"
SOURCE_FILE, FACTS_FILE = "polytune_template.jinja", "polytune_template.json"
"""Not `chat_template.jinja`: that is the tokenizer's own, and decides which of its tokens are control tokens."""
CLOCK = "strftime_now"
"""What a template calls to learn the day."""


@runtime_checkable
class ChatTemplate(Protocol):
    """What everything else may use of a template: ids of conversations and of prompts, never their text."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer whose ids these are."""
        ...

    @property
    def name(self) -> str:
        """What errors call the template."""
        ...

    @property
    def hash(self) -> str:
        """sha256 of what the template is; it knows nothing of any tokenizer's ids."""
        ...

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer, the template's own end-of-turn first. Never the pad id."""
        ...

    @property
    def notices(self) -> tuple[str, ...]:
        """What a user should know of the template before training with it."""
        ...

    @property
    def jinja(self) -> str:
        """The template as a Hugging Face chat template."""
        ...

    def encode_conversation(self, conversation: Conversation, loss: LossConfig = ANSWERS_ALONE) -> Encoded:
        """Returns ids, roles, loss weights and turns; a plain text is encoded without the template.

        Weights are 0, 1 and the policy's `prompt_weight`. Raises DataError naming the conversation.
        """
        ...

    def encode_prompt(self, turns: Sequence[Turn], *, tools: str = "") -> list[int]:
        """Returns the ids after which the model answers; `tools` as in a `Conversation`. Raises DataError."""
        ...


class _Facts(msgspec.Struct, frozen=True, kw_only=True):
    """A stored template less its source; `polytune_template.json`."""

    kind: str
    name: str
    date: str
    extra_stop_ids: tuple[int, ...]
    hash: str


def list_templates() -> list[str]:
    """The names of the templates that come with polytune."""
    return sorted(path.stem for path in SHIPPED.glob("*.jinja"))


def load_chat(
    tokenizer: Tokenizer, template: str | None = None, *, extra_stop_ids: Sequence[int] = (), date: str | None = None
) -> ChatTemplate:
    """Returns a template over a tokenizer: a shipped one by name, a file by path, or with None the tokenizer's own.

    A SentencePiece tokenizer's own is the control-token template. `date` is the ISO day that templates which print
    one are given; None: today. Raises DataError if there is none, or the template cannot be trained with.
    """
    stop_ids = tuple(extra_stop_ids)
    if template is None and isinstance(tokenizer, SentencePieceTokenizer):
        return ControlTemplate(tokenizer=tokenizer, extra_stop_ids=stop_ids)
    name, source = _find_source(tokenizer, template)
    if CLOCK not in source:
        date = ""
    elif date is None:
        date = datetime.date.today().isoformat()
    return JinjaTemplate(tokenizer=tokenizer, jinja=source, name=name, date=date, extra_stop_ids=stop_ids)


def save_chat(chat: ChatTemplate, directory: Path) -> None:
    """Writes the source and the facts it needs beside it into the folder of the tokenizer."""
    is_jinja = isinstance(chat, JinjaTemplate)
    extra = chat.extra_stop_ids if isinstance(chat, JinjaTemplate | ControlTemplate) else ()
    facts = _Facts(
        kind="jinja" if is_jinja else "control",
        name=chat.name,
        date=chat.date if is_jinja else "",
        extra_stop_ids=extra,
        hash=chat.hash,
    )
    directory.mkdir(parents=True, exist_ok=True)
    # Bytes, not text: a template that spells a line end as "\r\n" keeps it on every system.
    (directory / SOURCE_FILE).write_bytes(chat.jinja.encode())
    (directory / FACTS_FILE).write_text(json.dumps(msgspec.to_builtins(facts), indent=2) + "\n", encoding="utf-8")


def is_saved_chat(directory: Path) -> bool:
    """Whether `save_chat` wrote a template into the folder."""
    return (directory / FACTS_FILE).exists()


def load_saved_chat(tokenizer: Tokenizer, directory: Path, *, extra_stop_ids: Sequence[int] = ()) -> ChatTemplate:
    """Returns the template that `save_chat` wrote, over its tokenizer, with more stop ids if any are given.

    A SentencePiece tokenizer's folder without one is of a version that had no other than the control-token
    template. Raises DataError if files are missing or damaged, or are not what was saved.
    """
    if not is_saved_chat(directory) and isinstance(tokenizer, SentencePieceTokenizer):
        return ControlTemplate(tokenizer=tokenizer, extra_stop_ids=tuple(extra_stop_ids))
    try:
        facts = msgspec.json.decode((directory / FACTS_FILE).read_bytes(), type=_Facts)
        source = (directory / SOURCE_FILE).read_bytes().decode()
    except (OSError, ValueError) as error:
        raise DataError(
            f"{directory} holds no chat template ({error}); copy the run's tokenizer folder again"
        ) from None
    stop_ids = tuple(dict.fromkeys((*facts.extra_stop_ids, *extra_stop_ids)))
    chat: ChatTemplate
    if facts.kind == "jinja":
        chat = JinjaTemplate(
            tokenizer=tokenizer, jinja=source, name=facts.name, date=facts.date, extra_stop_ids=stop_ids
        )
    else:
        chat = load_chat(tokenizer, extra_stop_ids=stop_ids)
    if chat.hash != facts.hash:
        raise DataError(
            f"{directory / SOURCE_FILE} has hash {chat.hash[:12]}, but {FACTS_FILE} says {facts.hash[:12]}; a file or "
            "polytune's templates changed after it was saved: copy the folder again, or use the version that wrote it"
        )
    return chat


def read_saved_date(directory: Path) -> str | None:
    """The day a stored template tells of; None where there is none."""
    try:
        return msgspec.json.decode((directory / FACTS_FILE).read_bytes(), type=_Facts).date or None
    except (OSError, ValueError):
        return None


def _find_source(tokenizer: Tokenizer, template: str | None) -> tuple[str, str]:
    """A template's name for errors, and its source."""
    shipped = ", ".join(list_templates())
    if template is None:
        if tokenizer.chat_template is None:
            raise DataError(f"the tokenizer has no chat template; set tokenizer.template to a file or one of {shipped}")
        return "the tokenizer's own template", tokenizer.chat_template
    if template in list_templates():
        return f"template {template}", (SHIPPED / f"{template}.jinja").read_text(encoding="utf-8")
    try:
        return f"template {template}", Path(template).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"tokenizer.template {template!r} is no file that can be read ({error}); give one, or one of {shipped}"
        ) from None
