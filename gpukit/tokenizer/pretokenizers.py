r"""BPE pre-tokenizers: what each `tokenizer.ggml.pre` splits text on before its bytes are merged.

Names and expressions are facts of llama.cpp (src/llama-vocab.cpp, src/unicode.cpp). They are
written for Oniguruma, which the tokenizers library uses, and mean what they mean to llama.cpp: the
case of letters beyond ASCII is ignored, `\d` is a digit of ASCII, white space belongs to no other
class, and the quirks of matchers that llama.cpp has written by hand are kept.
"""

from dataclasses import dataclass, replace
from difflib import get_close_matches

from gpukit.errors import TokenizerError


@dataclass(frozen=True)
class PreTokenizer:
    """How text is cut before merges: each expression cuts what the one before it left whole.

    `raw` vocabularies merge characters instead of bytes, as sentencepiece does. `cleans` takes
    blanks before punctuation out of a whole decoded text.
    """

    splits: tuple[str, ...]
    ignore_merges: bool = False  # a piece that is a token itself is taken as it is
    add_bos: bool = False  # where the metadata does not say
    bos: int | None = 11  # where the metadata name none
    raw: bool = False
    cleans: bool = True


def rules_of(name: str) -> PreTokenizer:
    """The rules by the name of a pre-tokenizer; `TokenizerError` names those that are near."""
    if name not in PRE_TOKENIZERS:
        raise TokenizerError(f"unknown pre-tokenizer {name!r}; {near(name)}")
    return PRE_TOKENIZERS[name]


_CONTRACTION = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_OTHER = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"


def _modern(number: str, letters: str = _LETTERS, other: str = _OTHER, space: str = _SPACE) -> str:
    return f"{_CONTRACTION}|{letters}|{number}|{other}|{space}"


_llama3 = (_modern(r"\p{N}{1,3}"),)
_qwen2 = (_modern(r"\p{N}"),)
_digits = (r"\p{N}", _GPT2)
_lines = (r"[^\n]+|[\n]+",)

# CamelCase and contractions: upper case before lower case, where "case" is one of ASCII only.
_upper, _lower = r"(?:(?=[\p{L}])(?:[^a-z]))", r"(?:(?=[\p{L}])(?:[^A-Z]))"
_any = r"[\p{L}\p{M}]"


def _cased(upper: str, lower: str, end: str, number: str) -> str:
    start = r"[^\r\n\p{L}\p{N}]?"
    words = f"{start}{upper}*{lower}+{end}|{start}{upper}+{lower}*{end}"
    return rf"{words}|{number}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACE}"


_gpt4o = (_cased(_upper, _lower, f"{_CONTRACTION}?", r"\p{N}{1,3}"),)
_marked = (
    _cased(_upper.replace("p{L}", "p{L}\\p{M}"), _lower.replace("p{L}", "p{L}\\p{M}"),
           f"{_CONTRACTION}?", r"\p{N}{1,3}"),
)  # fmt: skip

# Numbers in groups of three from the right; what stands before a number goes with its first group.
_thousands = r"\G[^\p{N}]*+\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"

_kana = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_cjk = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff&&[^\\s]]+"
_punctuated = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_deepseek3 = (
    r"\p{N}{1,3}",
    _kana,
    _punctuated + r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACE,
)
_han = (
    "\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f"
    "\U0002b820-\U0002ceaf\U0002ceb0-\U0002ebef\uf900-\ufaff\U0002f800-\U0002fa1f"
)
_bloom = r" ?[^(\s|.,!?" + "\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
# The letters of the scripts with upper and lower case.
_alphabets = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd"
    "\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d"
    "\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b"
    "\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787"
    "\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_asian = (
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf"
    "\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af"
    "\u1100-\u11ff]+"
)
_youtu = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c"
    "\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|" + _kana
)
_wide_spaces = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4, "1,2"))

# Pre-tokenizers by their names, several of which may share one.
_NAMED: dict[str, PreTokenizer] = {
    "default": PreTokenizer(
        (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    ),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": PreTokenizer(
        _llama3, ignore_merges=True, add_bos=True
    ),
    "dbrx smaug-bpe": PreTokenizer(_llama3),
    "chatglm-bpe": PreTokenizer(_llama3, bos=None),
    "glm4 glm5": PreTokenizer(_llama3, ignore_merges=True, bos=None),
    "jais-2": PreTokenizer((_modern(r"\p{N}{1,3}", space=rf"\s*[\r\n]+|{_wide_spaces}|\s{{1}}"),)),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2": PreTokenizer(
        _qwen2
    ),
    "qwen35": PreTokenizer(
        (
            _modern(
                r"\p{N}",
                letters=rf"[^\r\n\p{{L}}\p{{N}}]?{_any}+",
                other=r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
            ),
        )
    ),
    "ufakzeka": PreTokenizer((rf"{_LETTERS}|\p{{N}}|{_OTHER}|{_SPACE}",)),
    "seed-coder": PreTokenizer((_modern(r"\p{N}{1}", other=r" ?[^\s\p{L}\p{N}\r\n]+"),)),
    "minicpm5": PreTokenizer((r"\p{N}{1,3}", _modern(r"\p{N}+")), ignore_merges=True),
    "laguna": PreTokenizer((*_lines, *_qwen2)),
    "bailingmoe bailingmoe2 llada-moe": PreTokenizer(
        (
            rf"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|{_LETTERS}|\p{{N}}|{_OTHER}"
            r"|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    "exaone-moe": PreTokenizer(
        (
            _modern(
                r"\p{N}",
                letters=r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
                other=r" ?[^\s\p{L}\p{N}]+[\r\n/]?",
                space=r"\s*[\r\n]|\s+(?!\S)|\s+",
            ),
        )
    ),
    "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert": (
        PreTokenizer((_GPT2,))
    ),
    "mpt olmo jais trillion granite-docling exaone4 jina-v1-en jina-v2-code roberta-bpe": (
        PreTokenizer((_GPT2,))
    ),
    "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2": PreTokenizer(_digits),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "tekken": PreTokenizer(
        (_cased(_upper, _lower, "", r"\p{N}"),), ignore_merges=True, add_bos=True
    ),
    "gpt-4o llama4 kanana2 talkie minimax-m2": PreTokenizer(_gpt4o),
    "granite-embed-multi-97m": PreTokenizer(_marked, ignore_merges=True),
    "tiny_aya cohere2moe": PreTokenizer(
        (_thousands, _cased(_any, _any, f"{_CONTRACTION}?", r"\p{N}{1,3}"))
    ),
    "youtu": PreTokenizer(
        (_youtu, _cased(_any, _any, f"{_CONTRACTION}?", r"\p{N}")), ignore_merges=True
    ),
    "kimi-k2": PreTokenizer(
        (
            rf"[{_han}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{_han}]]+{_CONTRACTION}?"
            rf"|\p{{N}}{{1,3}}|{_OTHER}|{_SPACE}",
        )
    ),
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            rf"\s?[{_alphabets}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3001-\u3002]+",
            r"\s+\z",
            _cjk,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _cjk, r"\p{N}")),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": PreTokenizer(_deepseek3),
    "spark2_5": PreTokenizer(
        (
            *_deepseek3[:2],
            _punctuated + r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]"
            r"|\s+(?!\S)|\s+",
            r"\p{N}",
        )
    ),
    "afmoe": PreTokenizer((_thousands, _asian, _deepseek3[2])),
    "poro-chat bloom gpt3-finnish": PreTokenizer((_bloom,)),
    "viking": PreTokenizer((_bloom, r"\p{N}")),
    "superbpe": PreTokenizer((r"\p{N}+", "(?=([0-9]{3})+(?![0-9]))")),
    "chameleon": PreTokenizer(
        (
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        add_bos=True,
    ),
    "gemma4 granite-embed-multi-311m": PreTokenizer(_lines, add_bos=True, raw=True),
    "sarvam-moe": PreTokenizer(_lines, raw=True),
}
# Those of them whose texts keep every blank.
_KEEP_BLANKS = frozenset((
    "afmoe", "bailingmoe", "bailingmoe2", "chameleon", "cohere2moe", "command-r", "deepseek-coder",
    "deepseek-llm", "deepseek-r1-qwen", "deepseek-v3", "f2llmv2", "gpt-4o", "granite-docling",
    "granite-embed-multi-97m", "grok-2", "hunyuan", "hunyuan-dense", "hy_v4", "joyai-llm",
    "kanana2", "kimi-k2", "kormo", "laguna", "llada-moe", "llama4", "minimax-m2", "poro-chat",
    "qwen2", "qwen35", "sarvam-moe", "seed-coder", "smollm", "solar-open", "spark2_5", "superbpe",
    "talkie", "tekken", "tiny_aya", "trillion", "ufakzeka", "viking", "youtu",
))  # fmt: skip
PRE_TOKENIZERS = {
    name: replace(rules, cleans=name not in _KEEP_BLANKS)
    for names, rules in _NAMED.items()
    for name in names.split()
}

# Where their names stand, for messages.
ALL = f"docs/importing.md lists all {len(PRE_TOKENIZERS)}"


def near(word: str) -> str:
    """The known names that are nearest to `word`, and where all of them stand, for messages."""
    names = {name.lower(): name for name in PRE_TOKENIZERS}
    close = [names[found] for found in get_close_matches(word.lower(), names, n=3, cutoff=0.7)]
    told = f"near {word!r}: {', '.join(close)}; " if close else ""
    return told + ALL
