"""The tokenizer files of a Hugging Face folder: read, kept as bytes, written back."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from data.schema import DataError

BACKEND_FILE, MODEL_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer.model", "tokenizer_config.json"
TOKENS_MAP_FILE, ADDED_FILE, TEMPLATE_FILE = "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
KEPT_FILES = (
    BACKEND_FILE,
    MODEL_FILE,
    CONFIG_FILE,
    TOKENS_MAP_FILE,
    ADDED_FILE,
    TEMPLATE_FILE,
    "vocab.json",
    "merges.txt",
)
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_files(directory: Path) -> dict[str, bytes]:
    """Returns the tokenizer files a folder holds, by name. Raises DataError if one cannot be read."""
    paths = [directory / name for name in KEPT_FILES]
    paths += sorted((directory / TEMPLATE_FOLDER).glob("*.jinja"))
    try:
        return {str(path.relative_to(directory)): path.read_bytes() for path in paths if path.is_file()}
    except OSError as error:
        raise DataError(f"cannot read tokenizer file {error.filename}: {error.strerror}") from None


def write_files(files: dict[str, bytes], directory: Path) -> None:
    """Writes files into a folder, byte for byte."""
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)


def parse_table(files: dict[str, bytes], name: str) -> dict[str, Any]:
    """Returns the JSON table of a file, empty where the file is not there. Raises DataError if it is damaged."""
    try:
        table = json.loads(files.get(name, b"{}"))
    except ValueError as error:
        raise DataError(f"{name} is damaged ({error}); copy it again") from None
    if not isinstance(table, dict):
        raise DataError(f"{name} holds no JSON table; copy it again")
    return table


def find_template(files: dict[str, bytes]) -> str | None:
    """Returns the default chat template: `chat_template.jinja`, else the entry of `tokenizer_config.json`.

    Raises DataError if the file is not text.
    """
    if TEMPLATE_FILE in files:
        try:
            return files[TEMPLATE_FILE].decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{TEMPLATE_FILE} is no UTF-8 text ({error}); copy it again") from None
    template = parse_table(files, CONFIG_FILE).get("chat_template")
    if isinstance(template, list):
        template = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
    if isinstance(template, dict):
        template = template.get("default")
    if template is not None and not isinstance(template, str):
        raise DataError(f"chat_template in {CONFIG_FILE} is {type(template).__name__}, not text; copy the file again")
    return template


def read_token(value: Any, file: str, *, special: bool | None = None) -> AddedToken | str:
    """Returns a token as its file spells it, a text or a table of flags. Raises DataError for anything else."""
    if isinstance(value, str | AddedToken):
        return value
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        flags = {name: value[name] for name in ("single_word", "lstrip", "rstrip", "normalized") if name in value}
        marked = bool(value.get("special", False)) if special is None else special
        return AddedToken(value["content"], special=marked, **flags)
    raise DataError(f"{file} holds {value!r} where a token should be; copy the file again")


def read_declared(files: dict[str, bytes]) -> dict[str, Any]:
    """Returns what the files say of tokens beside the vocabulary, as transformers 5 puts it together.

    `tokenizer_config.json` alone where it lists `added_tokens_decoder`; else `special_tokens_map.json` goes over
    it, and the added tokens come from `added_tokens.json` and `tokenizer.json`. The result holds the configuration's
    keys, tokens as `AddedToken` or text, other `*_token` names in `model_tokens`, added tokens by id in `added`.
    Raises DataError for damaged files.
    """
    declared = parse_table(files, CONFIG_FILE)
    declared.pop("chat_template", None)
    if "additional_special_tokens" in declared and not declared.get("extra_special_tokens"):
        declared["extra_special_tokens"] = declared.pop("additional_special_tokens")
    if "added_tokens_decoder" in declared:
        added = _read_decoder(declared.pop("added_tokens_decoder"))
    else:
        _merge_tokens_map(declared, parse_table(files, TOKENS_MAP_FILE))
        added = _read_added(declared, files)
    _name_model_tokens(declared)
    by_content = {token.content: token for token in added.values()}
    for name in NAMED_TOKENS:
        if declared.get(name) is not None:
            token = read_token(declared[name], CONFIG_FILE)
            declared[name] = by_content.get(spell_token(token), token)
    for name in ("extra_special_tokens", "additional_special_tokens"):
        if declared.get(name):
            declared[name] = [_read_extra(token) for token in declared[name]]
    return declared | {"added": added}


def spell_token(token: AddedToken | str) -> str:
    """Returns how a token is spelled."""
    return token if isinstance(token, str) else token.content


def _read_extra(value: Any) -> AddedToken | str:
    is_complete = isinstance(value, dict) and value.get("__type") == "AddedToken"
    return read_token(value, CONFIG_FILE, special=None if is_complete else True)


def _read_decoder(table: Any) -> dict[int, AddedToken]:
    tokens = {}
    for index, value in (table if isinstance(table, dict) else {"?": table}).items():
        token = read_token(value, CONFIG_FILE)
        if isinstance(token, str) or not str(index).isdigit():
            raise DataError(f"added_tokens_decoder in {CONFIG_FILE} has no table at id {index}; copy the file again")
        tokens[int(index)] = token
    return tokens


def _merge_tokens_map(declared: dict[str, Any], table: dict[str, Any]) -> None:
    for name, value in table.items():
        if name == "extra_special_tokens" and isinstance(value, list):
            present = list(declared.get(name) or [])
            declared[name] = present + [token for token in value if token not in present]
        elif isinstance(value, dict) and name != "extra_special_tokens":
            declared[name] = read_token(value, TOKENS_MAP_FILE, special=True)
        else:
            declared[name] = value


def _read_added(declared: dict[str, Any], files: dict[str, bytes]) -> dict[int, AddedToken]:
    tokens = {}
    listed = declared.get("extra_special_tokens") or []
    names = [declared.get(name) for name in NAMED_TOKENS] + (listed if isinstance(listed, list) else [])
    special = {spell_token(read_token(token, CONFIG_FILE)) for token in names if token is not None}
    for content, index in parse_table(files, ADDED_FILE).items():
        marked = content in special
        tokens[index] = AddedToken(content, normalized=not marked, special=marked)
    for value in parse_table(files, BACKEND_FILE).get("added_tokens", []):
        token = read_token(value, BACKEND_FILE)
        if isinstance(token, str) or not isinstance(value.get("id"), int):
            raise DataError(f"added_tokens in {BACKEND_FILE} holds {value!r}, no token with an id; copy the file again")
        tokens[value["id"]] = token
    return tokens


def _name_model_tokens(declared: dict[str, Any]) -> None:
    named: dict[str, AddedToken | str] = {}
    for name in [name for name in declared if name.endswith("_token") and name not in NAMED_TOKENS]:
        if isinstance(declared[name], str | dict | AddedToken):
            named[name] = read_token(declared.pop(name), CONFIG_FILE)
    if isinstance(declared.get("extra_special_tokens"), dict):
        named |= {name: read_token(value, CONFIG_FILE) for name, value in declared.pop("extra_special_tokens").items()}
    declared["model_tokens"] = named
