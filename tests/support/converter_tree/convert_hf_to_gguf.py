"""A converter as llama.cpp's, for models of one made-up class, that does as config.json says.

"do" in config.json names what it does wrong; everything else is as in llama.cpp: arguments, the
log, lazy tensors, the writer of the installed gguf.
"""

import argparse
import json
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path

import gguf
import numpy as np

logger = logging.getLogger("hf-to-gguf")
FILE_TYPES = {"auto": 32, "bf16": 32, "f16": 1, "f32": 0, "q8_0": 7}


def lazy(path, shape, do=None):
    """A tensor of `path`, which is read when it is wanted."""

    def load(file):
        if do == "crash midway":
            raise ValueError("the weights are torn")
        if do == "kill the parent once" and not path.with_name("killed").exists():
            path.with_name("killed").touch()
            time.sleep(1.5)  # what was before may be noted
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        if do == "be killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return np.load(file)

    meta = gguf.LazyNumpyTensor.meta_with_dtype_and_shape(np.float32, shape)
    return gguf.LazyNumpyTensor(meta=meta, args=(path,), func=load)


def misbehave(do, folder):
    """What goes wrong before there are tensors."""
    if do == "know nothing":
        logger.error("Model ToyModel is not supported")
        sys.exit(1)
    if do == "lack a package":
        import a_package_that_nobody_has  # noqa: F401
    if do == "crash":
        raise KeyError("rope_theta")
    if do == "exit":
        sys.exit(3)
    if do == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "fetch":
        socket.create_connection(("models.example", 443))
    if do == "wait":
        (folder / "waiting").touch()
        time.sleep(60)
    if do == "run code":
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


def add(writer, name, data, outtype):
    """Add a tensor as the converter does: its type by dimensions and `outtype`."""
    kinds = gguf.GGMLQuantizationType
    kind = kinds.F32 if len(data.shape) < 2 else kinds[outtype.upper().replace("AUTO", "BF16")]
    try:
        data = gguf.quants.quantize(data, kind)
    except gguf.QuantError as error:
        logger.warning("%s, %s", error, "falling back to F16")
        kind = kinds.F16
        data = gguf.quants.quantize(data, kind)
    writer.add_tensor(name, data, raw_dtype=kind)


def convert(folder, out, outtype):
    config = json.loads((folder / "config.json").read_text())
    do = config.get("do")
    logger.info(f"Loading model: {folder.name}")
    misbehave(do, folder)
    writer = gguf.GGUFWriter(None, "toy")
    writer.add_block_count(1)
    writer.add_file_type(FILE_TYPES[outtype])
    if do == "be eager and warn":
        logger.warning("** the vocabulary is odd")
        logger.warning("very odd")
        blocks = np.full((2, 32, 8 * 17), 120, np.uint8)
        writer.add_tensor("blk.0.mx_exps.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.MXFP4)
    for name, shape in config["tensors"].items():
        data = lazy(
            folder / f"{name}.npy", shape, do if name.startswith("blk.0.ffn_down") else None
        )
        if do == "be eager and warn":
            data = np.load(folder / f"{name}.npy")
        add(writer, name, data, outtype)
    writer.add_quantization_version(2)
    if do == "write two files":
        other = gguf.GGUFWriter(None, "toy")
        other.add_tensor("x.weight", np.zeros((2, 2), np.float32))
    writer.write_header_to_file(path=out)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=False)
    writer.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--outfile", type=Path)
    parser.add_argument("--outtype", choices=FILE_TYPES, default="auto")
    parser.add_argument("--do")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    convert(arguments.model, arguments.outfile, arguments.outtype)


if __name__ == "__main__":
    main()
