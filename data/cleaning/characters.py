"""Facts about characters, as tables over all code points: scripts, and where words begin."""

import functools
import unicodedata

import numpy as np

CODE_POINTS = 0x110000
LAST_ASSIGNED = 0x3FFFF
"""No letter stands above: planes 14 to 16 hold tags, variation selectors and private use."""
# The beginning of a letter's Unicode name, and the ISO 15924 code of its script. Python has no table of the script
# property; names begin with the script's. Letters of no script (mathematical, modifier, enclosed) are left out.
SCRIPT_NAMES = {
    "LATIN": "Latn", "FULLWIDTH LATIN": "Latn", "FEMININE ORDINAL": "Latn", "MASCULINE ORDINAL": "Latn",
    "CYRILLIC": "Cyrl", "GREEK": "Grek", "COPTIC": "Copt", "ARMENIAN": "Armn", "HEBREW": "Hebr", "ARABIC": "Arab",
    "SYRIAC": "Syrc", "THAANA": "Thaa", "NKO": "Nkoo", "SAMARITAN": "Samr", "MANDAIC": "Mand",
    "DEVANAGARI": "Deva", "BENGALI": "Beng", "GURMUKHI": "Guru", "GUJARATI": "Gujr", "ORIYA": "Orya", "TAMIL": "Taml",
    "TELUGU": "Telu", "KANNADA": "Knda", "MALAYALAM": "Mlym", "SINHALA": "Sinh", "THAI": "Thai", "LAO": "Laoo",
    "TIBETAN": "Tibt", "MYANMAR": "Mymr", "GEORGIAN": "Geor", "HANGUL": "Hang", "HALFWIDTH HANGUL": "Hang",
    "ETHIOPIC": "Ethi", "CHEROKEE": "Cher", "CANADIAN SYLLABICS": "Cans", "OGHAM": "Ogam", "RUNIC": "Runr",
    "KHMER": "Khmr", "MONGOLIAN": "Mong", "LIMBU": "Limb", "TAI LE": "Tale", "NEW TAI LUE": "Talu", "TAI THAM": "Lana",
    "TAI VIET": "Tavt", "BUGINESE": "Bugi", "BALINESE": "Bali", "SUNDANESE": "Sund", "BATAK": "Batk",
    "LEPCHA": "Lepc", "OL CHIKI": "Olck", "VEDIC": "Deva", "TIFINAGH": "Tfng", "GLAGOLITIC": "Glag",
    "HIRAGANA": "Hira", "KATAKANA": "Kana", "HALFWIDTH KATAKANA": "Kana", "BOPOMOFO": "Bopo", "CJK": "Hani",
    "IDEOGRAPHIC": "Hani", "YI SYLLABLE": "Yiii", "LISU": "Lisu", "VAI": "Vaii", "BAMUM": "Bamu",
    "SYLOTI NAGRI": "Sylo", "PHAGS-PA": "Phag", "SAURASHTRA": "Saur", "KAYAH LI": "Kali", "REJANG": "Rjng",
    "JAVANESE": "Java", "CHAM": "Cham", "MEETEI MAYEK": "Mtei", "GOTHIC": "Goth", "DESERET": "Dsrt", "OSAGE": "Osge",
    "OSMANYA": "Osma", "ADLAM": "Adlm", "HANIFI ROHINGYA": "Rohg", "YEZIDI": "Yezi", "CHAKMA": "Cakm",
    "MENDE KIKAKUI": "Mend", "BASSA VAH": "Bass", "PAHAWH HMONG": "Hmng", "NYIAKENG PUACHUE HMONG": "Hmnp",
    "WANCHO": "Wcho", "WARANG CITI": "Wara", "MRO": "Mroo", "SORA SOMPENG": "Sora", "MIAO": "Plrd",
    "GUNJALA GONDI": "Gong", "MASARAM GONDI": "Gonm", "KHUDAWADI": "Sind", "KHOJKI": "Khoj", "TIRHUTA": "Tirh",
    "NEWA": "Newa", "SIDDHAM": "Sidd", "SHARADA": "Shrd", "MODI": "Modi", "TAKRI": "Takr", "KAITHI": "Kthi",
    "BRAHMI": "Brah", "GRANTHA": "Gran", "DOGRA": "Dogr", "MAHAJANI": "Mahj", "MULTANI": "Mult", "TOTO": "Toto",
    "NAG MUNDARI": "Nagm", "TANGUT": "Tang", "NUSHU": "Nshu", "CUNEIFORM": "Xsux", "EGYPTIAN": "Egyp",
    "TAGALOG": "Tglg", "HANUNOO": "Hano", "BUHID": "Buhd", "TAGBANWA": "Tagb", "MAKASAR": "Maka",
}  # fmt: skip
SCRIPTS = ("", *sorted(set(SCRIPT_NAMES.values())))
"""Scripts by their number in `script_table`; 0 is everything that is no letter of one script."""
# Scripts whose writers put no space or point between words.
UNSPACED = frozenset(
    ("Hani", "Hira", "Kana", "Bopo", "Thai", "Laoo", "Khmr", "Mymr", "Yiii", "Lana", "Tale", "Talu", "Tavt", "Java",
    "Bali")
)  # fmt: skip

SEPARATOR, WORD, SINGLE, MARK = range(4)
"""What a character is to `unit_table`: between units, of a word, a unit by itself, of the character before it."""


@functools.cache
def script_table() -> np.ndarray:
    """Returns the script of each code point as a number of `SCRIPTS`, uint8; made once a process, in 0.3 s."""
    numbers = {name: SCRIPTS.index(code) for name, code in SCRIPT_NAMES.items()}
    table = np.zeros(CODE_POINTS, np.uint8)
    for code in range(LAST_ASSIGNED):
        character = chr(code)
        if unicodedata.category(character)[0] != "L":
            continue
        words = unicodedata.name(character, "").split(maxsplit=3)
        prefixes = (" ".join(words[:length]) for length in (3, 2, 1))
        table[code] = next((numbers[prefix] for prefix in prefixes if prefix in numbers), 0)
    return table


@functools.cache
def unit_table() -> np.ndarray:
    """Returns what each code point is to units, uint8: SEPARATOR, WORD, SINGLE or MARK; made once a process."""
    scripts = script_table()
    unspaced = np.isin(scripts, [SCRIPTS.index(code) for code in UNSPACED])
    table = np.full(CODE_POINTS, SEPARATOR, np.uint8)
    kinds = {"L": WORD, "N": WORD, "M": MARK}
    for code in range(LAST_ASSIGNED):
        table[code] = kinds.get(unicodedata.category(chr(code))[0], SEPARATOR)
    table[unspaced] = SINGLE
    return table


def read_codes(text: str) -> np.ndarray:
    """Returns the code points of a text, uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def count_scripts(text: str) -> dict[str, int]:
    """Returns how many letters the text has of each script, by ISO 15924 code; those of no one script are left out."""
    counts = np.bincount(script_table()[read_codes(text)], minlength=len(SCRIPTS))
    return {SCRIPTS[number]: int(counts[number]) for number in np.flatnonzero(counts) if number}
