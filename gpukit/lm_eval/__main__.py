"""lm-evaluation-harness with the model `gpukit`: it finds models of others only where they have
been registered in its process, and it has no plug-ins."""

import sys
from importlib.util import find_spec

from gpukit.errors import GpukitError


def main() -> int:
    """Run lm_eval with the arguments of this process; the exit code. What gpukit raises is one
    line."""
    if find_spec("lm_eval") is None:
        sys.stderr.write("Error: lm_eval is not installed; pip install 'gpukit[lm-eval]'\n")
        return 1
    import lm_eval.models  # noqa: F401  (its own: it registers them only where there are none)
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model

    from gpukit.lm_eval.model import GpukitLM

    register_model("gpukit")(GpukitLM)
    try:
        cli_evaluate()
    except GpukitError as error:
        sys.stderr.write(f"Error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
