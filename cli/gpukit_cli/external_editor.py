"""A text in the user's own editor."""

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from gpukit.errors import ArgumentError

# Where an editor is named, as Ollama looks for it.
NAMES = ("OLLAMA_EDITOR", "VISUAL", "EDITOR")
ELSE = "vi"


def edited(text: str) -> str:
    """What the user makes of `text` in the editor that the environment names; the newline that
    editors put at the end is left out.

    `ArgumentError` for an editor that cannot be started or ends with an error, which is how one
    says that nothing shall come of it; UnicodeError for what it leaves in another encoding.
    """
    name = next((value for key in NAMES if (value := os.environ.get(key, "").strip())), ELSE)
    try:
        command = shlex.split(name)
    except ValueError as error:
        raise ArgumentError(f"the editor {name!r} is no command: {error}; set EDITOR") from None
    with tempfile.TemporaryDirectory(prefix="gpukit-") as folder:
        path = Path(folder) / "message.txt"
        path.write_text(text, "utf-8", "surrogateescape")
        try:
            code = subprocess.run([*command, str(path)], check=False).returncode
        except OSError as error:
            raise ArgumentError(f"the editor {name}: {error.strerror}; set EDITOR") from None
        if code:
            raise ArgumentError(f"the editor {name} ended with {code}; nothing was said")
        return path.read_text("utf-8").removesuffix("\n")
