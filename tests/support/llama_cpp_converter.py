"""Runs llama.cpp's converter on many folders in one process: [TREE, WORDS, [FOLDER, OUT, TYPE,
PRE], ...] on standard input; WORDS are more of its arguments, PRE, if there is one, is the
pre-tokenizer that it shall recognise.

It works in an interpreter of its own, since its gguf package stands in for the installed one.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    tree, words, *jobs = json.load(sys.stdin)
    sys.path[:0] = [tree, str(Path(tree) / "gguf-py")]
    import convert_hf_to_gguf as converter
    from conversion.base import TextModel

    recognise = TextModel.get_vocab_base_pre
    for folder, out, kind, pre in jobs:
        TextModel.get_vocab_base_pre = (lambda *_, pre=pre: pre) if pre else recognise
        sys.argv = ["convert_hf_to_gguf.py", folder, "--outfile", out, "--outtype", kind, *words]
        try:
            converter.main()
        except (Exception, SystemExit) as error:
            sys.stderr.write(f"{folder}: {type(error).__name__}: {error}\n")


if __name__ == "__main__":
    main()
