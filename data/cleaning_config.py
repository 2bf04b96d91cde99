"""What a recipe says about cleaning: named predicates, all off unless asked for."""

from typing import Annotated, Literal

import msgspec

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
Part = Literal["answer", "prompt", "conversation"]
"""The assistant's turns (or a plain text), the user's turns, or both. System turns and tools' are often the same in a
thousand rows, and in another language: they are of no part."""
Scope = Literal["language", "source", "all"]
"""Examples are compared with those of the same language, of the same source, or with all."""


class LengthLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds in characters (Unicode code points, ends stripped) and turns. None is no bound; give one or more.

    A Chinese sentence has about a third of the characters of an English one: give bounds that fit every language.
    """

    min_prompt: Count | None = None
    """Characters of the user's turns together; a plain text has none."""
    max_prompt: Count | None = None
    min_answer: Count | None = None
    """Characters of the assistant's turns together, or of a plain text."""
    max_answer: Count | None = None
    min_turns: AtLeastOne | None = None
    """Turns of any role."""
    max_turns: AtLeastOne | None = None

    def __post_init__(self) -> None:
        if all(getattr(self, name) is None for name in self.__struct_fields__):
            raise ValueError(f"length has no bound, so it would drop nothing; give {', '.join(self.__struct_fields__)}")
        for what in ("prompt", "answer", "turns"):
            low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{what}={low} is above max_{what}={high}, so every row would be dropped")


class RatioLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of the answer's length divided by the prompt's, for tasks such as translation."""

    min_ratio: Annotated[float, msgspec.Meta(ge=0)] = 0.1
    """Characters per character, from 0. The least of 7,840 Tatoeba pairs from English into 112 languages is 0.105, a
    thousandth lies below 0.19; an instruction around the sentence makes prompts longer still."""
    max_ratio: Positive = 3.0
    """Characters per character. Source: the filter of Llammas (TartuNLP/llammas; length ratio at most 3). One of those
    Tatoeba pairs is above it."""
    tasks: tuple[str, ...] = ("translation",)
    """Values of an example's `task` that are judged; the others are not. Empty: every example."""

    def __post_init__(self) -> None:
        if self.min_ratio > self.max_ratio:
            raise ValueError(f"min_ratio={self.min_ratio:g} is above max_ratio={self.max_ratio:g}")


class RepetitionLimit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of an answer may repeat itself, as degenerate samples of a model do."""

    max_share: Share = 0.5
    """Share, 0 to 1, of the answer's n-grams that occurred in it before. Measures of this kind, and lower limits for
    web pages, are in arXiv:2112.11446 table A1 (Gopher); lists and poems of instruction data need more room."""
    words: AtLeastOne = 5
    """Length of an n-gram in words, in scripts that put spaces between them."""
    characters: AtLeastOne = 10
    """Length of an n-gram in characters, in scripts that do not."""
    min_units: AtLeastOne = 50
    """Answers with fewer words (or characters, without spaces) are not judged."""


class ScriptCheck(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Words that are not of the script the tag stands for. Judges every language whose script CLDR knows."""

    part: Part = "answer"
    """What is judged. Code between backticks and addresses are left out of it."""
    min_share: Share = 0.25
    """Least share, 0 to 1, of the words (characters, in scripts without spaces) that must be of the tag's script. A
    text in another script has next to none, whatever names it holds."""
    min_letters: AtLeastOne = 10
    """Texts with fewer letters are not judged."""
    scripts: dict[str, tuple[str, ...]] = {}
    """Further scripts of a tag, as ISO 15924 codes: `{ha: [Arab], hi: [Latn]}`."""
    except_tasks: tuple[str, ...] = ()
    """Values of `task` whose answers are in another script on purpose (transliteration); not judged."""


class LanguageCheck(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A language identifier that disagrees with the tag. Needs `pip install 'polytune[clean]'`.

    Judged only where the identifier knows the tag's language; the others are counted as not judged. Languages it
    cannot tell apart by design (CLDR: distance 14 or less, such as Indonesian and Malay) count as one.
    """

    part: Part = "answer"
    """What is judged. Code between backticks and addresses are left out of it."""
    confidence: Share = 0.7
    """Probability, 0 to 1, that the identifier must give to another language. On SIB-200, single sentences in 125
    languages, 0.7 finds 95% of swapped texts and drops 2 of 3,750 right ones; 0.5: 99%, 2; 0.9: 86%, none."""
    min_letters: AtLeastOne = 20
    """Texts with fewer letters are not judged: identifiers guess on short ones. Of 6,858 right sentences of SIB-200 and
    Tatoeba with 20 letters or more, confidence 0.7 drops 9."""
    model: str | None = None
    """A fastText model such as GlotLID (`model.bin`), relative to `data.root`; needs `pip install
    'polytune[fasttext]'`. None: the model of 139 languages that comes with the package py3langid."""
    except_tasks: tuple[str, ...] = ()
    """Values of `task` whose answers are in another language on purpose; not judged."""


class PhraseCheck(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Refusals and boiler-plate in an assistant's turn ("As an AI language model"). Source: arXiv:2308.13449.

    Phrases of the row's language and of English are looked for, after folding case, width and apostrophes.
    """

    file: str | None = None
    """YAML, relative to `data.root`, in the form of `data/cleaning/phrases.yaml`: its phrases are looked for too."""
    shipped: bool = True
    """Whether the phrases that come with polytune (36 languages) are looked for."""

    def __post_init__(self) -> None:
        if self.file is None and not self.shipped:
            raise ValueError("phrases has no file and shipped is false, so it would drop nothing; give a file")


class ExactDuplicates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Examples whose text is that of an earlier one, after NFC and with the ends of turns stripped."""

    part: Part = "conversation"
    """What is compared. `conversation`: all turns with their roles, thoughts, calls and the list of tools."""
    scope: Scope = "language"


class NearDuplicates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Examples that share most of their character n-grams with an earlier one. Needs `pip install 'polytune[clean]'`.

    Jaccard similarity, estimated by MinHash (datasketch), candidates by locality-sensitive hashing.
    """

    threshold: Annotated[float, msgspec.Meta(ge=0.3, le=1)] = 0.8
    """Least estimated similarity, 0.3 to 1. Source: arXiv:2107.06499 and arXiv:2112.11446 use 0.8."""
    permutations: Annotated[int, msgspec.Meta(ge=16, le=1024)] = 128
    """MinHash values an example, 4 bytes each. The estimate's standard error is 0.035 at 0.8 with 128, and falls with
    the square root."""
    characters: Annotated[int, msgspec.Meta(ge=1, le=32)] = 5
    """Length of the n-grams, in characters of any script. Source: Leskovec, Rajaraman and Ullman, Mining of Massive
    Datasets, section 3.2.2 (5 for short texts such as e-mails, 9 for articles)."""
    min_characters: Count = 100
    """Shorter texts are compared exactly only (if `exact_duplicates` is on): in a short text one name is the difference
    between two questions."""
    part: Part = "conversation"
    scope: Scope = "language"
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 1
    """Which permutations."""


class EvaluationSet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rows that must not be trained on."""

    path: str
    """Files or a glob in any format that sources may have, relative to `data.root`."""
    name: str = ""
    """What reports call it; empty: its path."""
    fields: tuple[str, ...] = ()
    """Fields that are looked for, each by itself; lists and objects in them are walked. Empty: every text of a row."""
    bad_rows: Literal["error", "skip"] = "error"
    """Whether a row that cannot be read stops the run, or is passed over (and counted)."""


class Decontamination(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Training rows that hold the text of an evaluation row: n-gram overlap, within and across languages' files.

    A translation of an evaluation row is not found: it shares no n-gram with it.
    """

    sets: tuple[EvaluationSet, ...]
    words: Annotated[int, msgspec.Meta(ge=2, le=50)] = 8
    """Length of an n-gram in words, in scripts that put spaces between them. Source: 8 with half of the text covered is
    Tulu 3's rule for instruction data (arXiv:2411.15124 section 3.2); GPT-3's is any one 13-gram (arXiv:2005.14165
    appendix C): `words: 13, min_covered: 0`."""
    characters: Annotated[int, msgspec.Meta(ge=4, le=200)] = 20
    """Length of an n-gram in characters, in scripts that do not. In SIB-200, 8 English words become 13
    characters of Chinese, 20 of Japanese, 25 of Burmese, 34 of Thai."""
    min_covered: Share = 0.5
    """Least share, 0 to 1, of an evaluation text's words (characters) that lie in n-grams of the training row. 0: one
    n-gram is enough."""

    def __post_init__(self) -> None:
        if not self.sets:
            raise ValueError("decontamination.sets is empty, so nothing would be looked for; give at least one set")


class CleaningConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which examples are left out, and why; each predicate's count by language and source is in the report.

    A row is counted under the first predicate, in this order, that it fails. None: the predicate is off.
    """

    length: LengthLimits | None = None
    ratio: RatioLimits | None = None
    repetition: RepetitionLimit | None = None
    script_mismatch: ScriptCheck | None = None
    phrases: PhraseCheck | None = None
    language_mismatch: LanguageCheck | None = None
    decontamination: Decontamination | None = None
    exact_duplicates: ExactDuplicates | None = None
    near_duplicates: NearDuplicates | None = None
    max_listed: Count = 1000
    """Rows listed in the report with their reasons, for each predicate; all are counted."""
