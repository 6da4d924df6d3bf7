"""Special token ids and what is put around a text, of a folder, as GGUF metadata.

Facts: llama.cpp's converter (SpecialVocab). Its rules are guesses that depend on their order:
tokenizer.json's post-processor first, then tokenizer_config.json, then config.json; what is found
first stays. What none of them names is looked up in generation_config.json.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpukit.errors import TokenizerError
from gpukit.events import Report, Warned, ignore
from gpukit.formats.gguf_fields import Field, ValueType, array, boolean, u32
from gpukit.tokenizer.files import read_json, read_text, sound
from gpukit.tokenizer.templates import chat_templates, template_fields

# Kinds of special tokens in the order in which they are looked up.
KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
ID_KEYS = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding",
    "mask": "mask", "eot": "eot", "eom": "eom",
}  # fmt: skip
ADD_KINDS = ("bos", "eos", "sep")
# Where the end of a template goes when settings name another token as the end of a text.
SPARE = ("eot", "eom")
# What fits into the metadata.
MOST_IDS = 1 << 32


def special_fields(
    folder: Path,
    *,
    size: int | None = None,
    merges: bool = False,
    kinds: Sequence[str] = KINDS,
    ids: Mapping[str, int] | None = None,
    library: Mapping[str, Any] | None = None,
    report: Report = ignore,
) -> list[Field]:
    """The fields of `folder`, in the converter's order: merges, ids, flags, templates, normalizer.

    Ids at or above `size` are left out; `ids` are set where the folder's files name none of that
    kind; `kinds` are looked up; `library` is tokenizer.json where it has been read already, which
    takes long; `report` is told of what is no id. `TokenizerError` for files that are not built as
    they must be.
    """
    with sound(folder):
        if library is None:
            library = read_json(folder / "tokenizer.json")
        settings = read_json(folder / "tokenizer_config.json")
        found = _Special(library or {}, dict(settings) if settings else None, kinds, size)
        found.read_settings()
        for path, config in _configs(folder):
            for line in found.read_config(config):
                report(Warned(f"{path}: {line}"))
        for kind, number in (ids or {}).items():
            found.set_id(kind, number)
        templates = chat_templates(folder, settings or {}, report)
        if templates and "default" not in templates:
            report(Warned(
                f"{folder}: of its chat templates ({', '.join(templates)}) none is the default: "
                "conversations have none"
            ))  # fmt: skip
        return [
            *(_merges(folder, library or {}) if merges else ()),
            *found.fields(),
            *template_fields(templates),
            *_normalizer((library or {}).get("normalizer") or {}),
        ]


def _configs(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """config.json, and generation_config.json where it can be read."""
    paths = folder / "config.json", folder / "generation_config.json"
    found = [(paths[0], read_json(paths[0]) or {})]
    with suppress(TokenizerError):
        found.append((paths[1], read_json(paths[1]) or {}))
    return found


class _Special:
    """Ids and flags as they are found; the first of each kind stays."""

    def __init__(
        self,
        library: Mapping[str, Any],
        settings: dict[str, Any] | None,
        kinds: Sequence[str],
        size: int | None,
    ) -> None:
        self.ids: dict[str, int] = {}
        self.adds: dict[str, bool] = {}
        self._kinds = list(kinds)
        self._size = size
        self._added = library.get("added_tokens") or []
        self._settings = settings
        named = settings or {}
        # Texts, as the settings spell them: strings or objects.
        self._bos, self._cls = named.get("bos_token"), named.get("cls_token")
        self._eos, self._sep = named.get("eos_token"), named.get("sep_token")
        if library:
            if not self._bos and self._cls:
                self._bos = self._name("bos", self._cls)
            if not self._eos and self._sep:
                self._eos = self._name("eos", self._sep)
            self._read_post_processor(library.get("post_processor") or {})

    def _name(self, kind: str, text: Any) -> Any:
        """`text`, which the settings name as the token of `kind` from now on."""
        if self._settings:
            self._settings[f"{kind}_token"] = text
        return text

    def _read_post_processor(self, post: Mapping[str, Any]) -> None:
        for step in post.get("processors", [post]):
            kind = step.get("type")
            if kind == "ByteLevel":
                self.adds.setdefault("bos", False)
                self.adds.setdefault("eos", False)
            elif kind == "RobertaProcessing":
                self.adds |= {"bos": True, "eos": True, "sep": True}
                if self._settings and not self._cls:
                    self._cls = self._name("cls", step.get("cls", [self._bos])[0])
                if self._settings and not self._sep:
                    self._sep = self._name("sep", step.get("sep", [self._eos])[0])
            elif kind == "TemplateProcessing":
                self._read_template(step)

    def _read_template(self, step: Mapping[str, Any]) -> None:
        single, pair = step.get("single", []), step.get("pair", [])
        first = _token(single[0]) if len(single) > 1 else None
        last = _token(single[-1]) if len(single) > 1 else None
        if first:
            self._read_first(first)
        if last:
            self._read_last(last)
        begin = 1 if pair and first and _token(pair[0]) == first else 0
        end = len(pair) - 1 if pair and last and _token(pair[-1]) == last else len(pair)
        pair = pair[begin:end]
        between = pair[1:-1]
        if between and _sequence(pair[0]) == "A" and _sequence(pair[-1]) == "B":
            self._read_between(between, ends=bool(last))

    def _read_first(self, first: str) -> None:
        if not self._settings:
            self._bos = first
        elif first not in (self._bos, self._cls):
            if not self._bos:
                self._bos = self._name("bos", first)
            if not self._cls:
                self._cls = self._name("cls", first)
        self.adds["bos"] = first in (self._bos, self._cls)

    def _read_last(self, last: str) -> None:
        if self._settings and last != self._eos:
            spare = next((kind for kind in SPARE if kind not in self._kinds), None)
            if spare is not None:
                self._kinds.append(spare)
                self._name(spare, self._eos)
            self._name("eos", last)
        self._eos = last
        self.adds["eos"] = True

    def _read_between(self, between: Sequence[Any], *, ends: bool) -> None:
        """A text, a separator (or an end and a beginning), a second text."""
        marks = (self._sep, self._eos)
        separated = not ends and _token(between[0]) in marks and bool(_token(between[0]))
        if len(between) == 2 and _token(between[1]) and _token(between[1]) in marks:
            separated = True
        self.adds["sep"] = separated
        if separated and not self._sep:
            self._name("sep", self._eos)

    def read_settings(self) -> None:
        """Flags, and ids by the texts of added tokens."""
        for kind in self._kinds:
            flag = (self._settings or {}).get(f"add_{kind}_token")
            if isinstance(flag, bool):
                self.adds.setdefault(kind, flag)
            entry = (self._settings or {}).get(f"{kind}_token")
            text = entry.get("content") if isinstance(entry, dict) else entry
            if isinstance(text, str):
                numbers = (token.get("id") for token in self._added if token.get("content") == text)
                self.set_id(kind, next(numbers, None))

    def read_config(self, config: Mapping[str, Any]) -> Iterator[str]:
        """Ids that nothing has named yet; a line for each that is none.

        All of a list end a generation: the first is the end of a text, the next two those of a turn
        and of a message.
        """
        inner = config.get("text_config") or {}
        for kind in self._kinds:
            said = config.get(f"{kind}_token_id")
            said = inner.get(f"{kind}_token_id") if said is None else said
            numbers = said if isinstance(said, list) else [] if said is None else [said]
            odd = [number for number in numbers if not self._is_id(number)]
            if odd:
                yield f"{kind}_token_id {str(odd[0])[:40]!r} is no token; left out"
            if kind not in self.ids:
                names = (kind, *SPARE) if kind == "eos" else (kind,)
                known = (number for number in numbers if self._is_id(number))
                for name, number in zip(names, known, strict=False):
                    self.set_id(name, number)

    def _is_id(self, number: Any) -> bool:
        """Whether the vocabulary has a token `number`."""
        whole = isinstance(number, int) and not isinstance(number, bool)
        return whole and 0 <= number < (MOST_IDS if self._size is None else self._size)

    def set_id(self, kind: str, number: Any) -> None:
        """Note an id, if it is one and there is none of its kind yet."""
        if self._is_id(number):
            self.ids.setdefault(kind, number)

    def fields(self) -> Iterator[Field]:
        """Ids, then flags, in the order in which they were found."""
        for kind, number in self.ids.items():
            if kind in ID_KEYS:
                yield u32(f"tokenizer.ggml.{ID_KEYS[kind]}_token_id", number)
        for kind, flag in self.adds.items():
            if kind in ADD_KINDS:
                yield boolean(f"tokenizer.ggml.add_{kind}_token", flag)


def _token(entry: Mapping[str, Any]) -> Any:
    return entry.get("SpecialToken", {}).get("id")


def _sequence(entry: Mapping[str, Any]) -> Any:
    return entry.get("Sequence", {}).get("id")


def _merges(folder: Path, library: Mapping[str, Any]) -> list[Field]:
    """ "a b" each; spaces inside the parts are written as the byte-level letter for a space."""
    found = library.get("model", {}).get("merges") or _merges_file(folder / "merges.txt")
    if found and not isinstance(found[0], str):
        found = [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in found]
    return [array("tokenizer.ggml.merges", ValueType.STRING, found)] if found else []


def _merges_file(path: Path) -> list[str]:
    if not path.is_file():
        return []
    lines = read_text(path).split("\n")
    if lines[0].startswith("#"):
        lines = lines[1:]
    pairs = (line.split() for line in lines)
    return [" ".join(pair) for pair in pairs if len(pair) == 2]


def _normalizer(step: Mapping[str, Any]) -> list[Field]:
    """What a normalizer does to letters, if it does."""
    flags: dict[str, bool] = {}
    _normalizer_flags(step, flags)
    order = ("lowercase", "strip_accents")
    return [
        boolean(f"tokenizer.ggml.normalizer.{key}", flags[key])
        for key in order
        if isinstance(flags.get(key), bool)
    ]


def _normalizer_flags(step: Mapping[str, Any], flags: dict[str, bool]) -> None:
    match step.get("type"):
        case "Lowercase":
            flags["lowercase"] = True
        case "StripAccents":
            flags["strip_accents"] = True
        case "BertNormalizer":
            flags.update({k: step[k] for k in ("lowercase", "strip_accents") if k in step})
        case "Sequence":
            for inner in step.get("normalizers", []):
                _normalizer_flags(inner, flags)
