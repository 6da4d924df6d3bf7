"""What is open, or being made, for the length of a `with` block."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Closing(ABC):
    """Something open that `close` gives back; a `with` block closes it at its end."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Publishing(ABC):
    """Something being made: at the end of a `with` block it is whole and has its name, or, after an
    error, is gone."""

    @abstractmethod
    def complete(self) -> None:
        """All of it is checked to be there and lasts; it has no name yet."""

    @abstractmethod
    def publish(self) -> None:
        """Give what is complete its name."""

    @abstractmethod
    def discard(self) -> None:
        """Remove what there is."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.discard()
            return
        try:
            self.complete()
            self.publish()
        except BaseException:
            self.discard()
            raise
