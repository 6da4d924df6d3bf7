"""Runs llama.cpp's convert_hf_to_gguf.py, unmodified, up to where it would write tensors.

    python converter_child.py TREE FOLDER OUTTYPE TRUST [argument of the converter ...]

It imports nothing of gpukit: its gguf is that of the checkout TREE. On standard output stands one
line of JSON, {"header": bytes, "tensors": [{"name", "target", "stored", "leaf"}, ...]}, and behind
it the header of the GGUF that the converter would have written; or {"error": KIND, "text": ...}.
A request on standard input, int64 tensor, first row and number of rows, is answered with these rows
as `stored`, and nothing else. When standard input ends the process does, whatever it is doing.
"""

import json
import os
import signal
import struct
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from math import prod
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from gpukit.sources import converter_guards as guards, lazy_rows

REQUEST = struct.Struct("<3q")
# Eager tensors of more bytes than this go to a file: there may be many.
SPILLED = 1 << 16
# The types that rows are sent in, as torch calls them.
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Parent:
    """The other end: what is told, what is asked for. Whatever the converter prints goes to
    standard error."""

    def __init__(self, scratch: Path) -> None:
        self._out = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)
        self._scratch = scratch
        self._told = False
        self._requests: SimpleQueue[tuple[int, int, int]] = SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        """Queue requests; the parent's end is that of this process."""
        while len(data := sys.stdin.buffer.read(REQUEST.size)) == REQUEST.size:
            self._requests.put(REQUEST.unpack(data))
        self.leave(0)

    def leave(self, status: int) -> NoReturn:
        """End at once, and leave nothing."""
        for path in self._scratch.iterdir() if self._scratch.is_dir() else ():
            path.unlink(missing_ok=True)
        if self._scratch.is_dir():
            self._scratch.rmdir()
        sys.stderr.flush()
        os._exit(status)

    def request(self) -> tuple[int, int, int]:
        return self._requests.get()

    def tell(self, line: dict[str, Any], rest: bytes = b"") -> None:
        self._told = True
        self.send(json.dumps(line).encode() + b"\n" + rest)

    def tell_why_not(self, line: dict[str, str]) -> None:
        """The same for a reason, which nobody would see among rows."""
        if not self._told:
            self.tell(line)

    def send(self, data: Any) -> None:
        view = memoryview(data).cast("B")
        while view:
            view = view[self._out.write(view) or 0 :]


def spilled(tensor: Any) -> Any:
    """`tensor`, if it is an array that is there already in a file that has no name."""
    import numpy as np

    if not isinstance(tensor, np.ndarray) or isinstance(tensor, np.memmap):
        return tensor
    if tensor.nbytes <= SPILLED:
        return tensor
    with tempfile.TemporaryFile() as file:
        np.ascontiguousarray(tensor).tofile(file)
        file.flush()
        return np.memmap(file, tensor.dtype, "r", shape=tensor.shape)


class Chunks:
    """Rows of a tensor that the converter makes in chunks, one of which is in memory."""

    def __init__(self, tensor: Any) -> None:
        self._loaders = tensor._chunks
        self._number, self._first = -1, 0
        self._chunk: Any = None

    def of(self, begin: int, end: int) -> Any:
        import torch

        parts = []
        while begin < end:
            chunk = self._at(begin)
            last = min(end, self._first + len(chunk))
            parts.append(chunk[begin - self._first : last - self._first])
            begin = last
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _at(self, row: int) -> Any:
        if self._chunk is None or row < self._first:
            self._number, self._first = 0, 0
            self._chunk = lazy_rows.flat(self._loaders[0]())
        while row >= self._first + len(self._chunk):
            self._first, self._number = self._first + len(self._chunk), self._number + 1
            self._chunk = None
            self._chunk = lazy_rows.flat(self._loaders[self._number]())
        return self._chunk


class Serving:
    """The tensors of a writer, told and served."""

    def __init__(self, writer: Any, parent: Parent) -> None:
        self._parent = parent
        self._rows = lazy_rows.Rows()
        self._infos = [(name, i) for part in writer.tensors for name, i in part.items()]
        self._bases = [self._base(info) for _, info in self._infos]

    def _base(self, info: Any) -> Any:
        """The floats that a tensor is made of; None where only its bytes are known."""
        tensor, target = info.tensor, info.dtype.name
        made = getattr(tensor, "__dict__", {}).get("gpukit_made_of")
        if made is not None and made[1].name == target:
            return made[0]
        if type(tensor).__name__ == "LazyChunkedTensor":
            return Chunks(tensor)
        own = {"float32": "F32", "float16": "F16"}.get(str(tensor.dtype))
        return tensor if own == target else None

    def told(self) -> list[dict[str, str]]:
        """What the parent has to know of each tensor."""
        found = []
        for (name, info), base in zip(self._infos, self._bases, strict=True):
            target = info.dtype.name
            stored = target if base is None or target in DTYPES else "F32"
            lazy = base is not None and not isinstance(base, Chunks)
            leaf = lazy_rows.leaf_dtype(base) if lazy else ""
            found.append({"name": name, "target": target, "stored": stored, "leaf": leaf})
        return found

    def run(self) -> None:
        """Answer requests; without end."""
        import torch

        torch.set_num_threads(1)
        dtypes = {kind: getattr(torch, name) for kind, name in DTYPES.items()}
        told = self.told()
        with torch.inference_mode():
            while True:
                index, row, count = self._parent.request()
                base, info = self._bases[index], self._infos[index][1]
                if base is None:
                    self._parent.send(self._bytes(info)[row : row + count].reshape(-1))
                    continue
                made = base.of if isinstance(base, Chunks) else self._of(base)
                x = made(row, row + count).to(dtypes[told[index]["stored"]]).contiguous()
                self._parent.send(x.view(torch.uint8).numpy().reshape(-1))

    def _of(self, base: Any) -> Callable[[int, int], Any]:
        return lambda begin, end: self._rows.of(base, begin, end)

    def _bytes(self, info: Any) -> Any:
        """uint8 `[rows, bytes]` of a tensor that is in blocks, or is no float."""
        import numpy as np

        x = self._rows.of(info.tensor, 0, max(prod(lazy_rows.shape_of(info.tensor)[:-1]), 1))
        return x.numpy().view(np.uint8).reshape(max(prod(info.shape[:-1]), 1), -1)


def hook(gguf: Any, parent: Parent) -> None:
    """Let the converter's gguf tell of tensors where it would write them."""
    writer: Any = getattr(gguf, "GGUFWriter", None)
    quants: Any = getattr(gguf, "quants", None)
    for name in ("write_tensors_to_file", "write_ti_data_to_file", "add_tensor"):
        if not hasattr(writer, name):
            raise guards.Stopped("old", f"its gguf has no GGUFWriter.{name}")
    if not hasattr(quants, "quantize"):
        raise guards.Stopped("old", "its gguf has no quants.quantize")
    quantize, init, add = quants.quantize, writer.__init__, writer.add_tensor
    writers: list[Any] = []

    def quantized(data: Any, qtype: Any) -> Any:
        out = quantize(data, qtype)
        if lazy_rows.is_lazy(out) and lazy_rows.is_lazy(data):
            out.__dict__["gpukit_made_of"] = (data, qtype)
        return out

    def noted(self: Any, *args: Any, **kwargs: Any) -> None:
        writers.append(self)
        init(self, *args, **kwargs)

    def added(self: Any, name: str, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return add(self, name, spilled(tensor), *args, **kwargs)

    def written(self: Any, *_: Any, **__: Any) -> None:
        if others := sum(other is not self and any(other.tensors) for other in writers):
            raise guards.Stopped("files", f"{others + 1}")
        self.write_ti_data_to_file()
        for file in self.fout:
            file.flush()
        serving = Serving(self, parent)
        header = Path(self.fout[0].name).read_bytes()
        Path(self.fout[0].name).unlink()
        parent.tell({"header": len(header), "tensors": serving.told()}, header)
        serving.run()

    quants.quantize = quantized
    writer.__init__, writer.add_tensor, writer.write_tensors_to_file = noted, added, written


def main(parent: Parent, scratch: Path) -> None:
    tree, folder, outtype, trust, *arguments = sys.argv[1:]
    # The place of this script would let its neighbours stand in for packages of their names.
    sys.path[:1] = [tree, str(Path(tree) / "gguf-py")]
    guards.no_network()
    if trust != "trust":
        guards.no_code()
    import gguf

    hook(gguf, parent)
    import convert_hf_to_gguf as converter  # type: ignore[import-not-found]

    if not hasattr(converter, "main"):
        raise guards.Stopped("old", "its convert_hf_to_gguf.py has no main")
    out = str(scratch / "model.gguf")
    sys.argv = ["convert_hf_to_gguf.py", folder, "--outfile", out, "--outtype", outtype, *arguments]
    converter.main()
    raise guards.Stopped("failed", "it wrote no tensors")


if __name__ == "__main__":
    if not TYPE_CHECKING:
        import converter_guards as guards
        import lazy_rows
    # Control-C is for the parent, whose end is this one's.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    place = Path(tempfile.mkdtemp(prefix="gpukit-converter-"))
    channel = Parent(place)
    try:
        main(channel, place)
    except BaseException as error:
        if not isinstance(error, SystemExit):  # its log says why
            traceback.print_exc()
        channel.tell_why_not(guards.reason(error))
    channel.leave(1)
