"""`gpukit`, and `python -m gpukit_cli`."""

import signal


def main() -> None:
    """Run the command line; who interrupts it before it is loaded sees nothing of Python."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from gpukit_cli.app import main as command_line

    command_line()


if __name__ == "__main__":
    main()
