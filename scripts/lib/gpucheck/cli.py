"""gpukit's command with Triton's keys as the other processes of the check have them; on stderr the
seconds of its beginnings."""

import os
import runpy
import sys
import time

if __name__ == "__main__":
    begin = time.monotonic()
    if sys.argv[sys.argv.index("--device") + 1] != "cpu":
        from gpucheck.base import stable_keys

        stable_keys()
        import torch

        imported = time.monotonic()
        torch.zeros(1, device="cuda")
        line = f"imports {imported - begin:.2f} s, context {time.monotonic() - imported:.2f} s\n"
        with open(os.path.join(os.environ["GPU_CHECK_FOLDER"], "cli.log"), "a") as log:
            log.write(line)
    runpy.run_module("gpukit_cli", run_name="__main__", alter_sys=True)
