"""The one exception of the kernels."""


class QuantError(ValueError):
    """A type, a shape or a device that a kernel cannot take; the message is one line."""
