"""What stays of an answer for the next one: keys and values of the tokens that both begin with."""

from collections.abc import Sequence
from itertools import takewhile

from gpukit.models.cache import KVCache
from gpukit.models.decoder import Decoder


class Memory:
    """The cache of one conversation with one decoder, and the tokens whose places are filled."""

    def __init__(self) -> None:
        self._cache: KVCache | None = None
        self._ids: list[int] = []

    def begin(self, decoder: Decoder, n_ctx: int, ids: Sequence[int]) -> KVCache:
        """The cache for `ids`, filled as far as they agree with what was there; at least the last
        of them is left to be computed. Another context than before begins anew."""
        if self._cache is None or self._cache.n_ctx != n_ctx:
            self._cache, self._ids = decoder.cache(n_ctx), []
        pairs = zip(self._ids, ids, strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._cache.cut(min(same, max(len(ids) - 1, 0)))
        return self._cache

    def keep(self, ids: Sequence[int]) -> None:
        """Note which tokens are in the cache: as many of `ids` as it has places filled."""
        self._ids = list(ids[: self._cache.length]) if self._cache else []
