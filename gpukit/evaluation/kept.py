"""A reference that several models are measured beside goes through its layers once.

What its layers give is kept on the host, as much as `KEPT` holds: of each scored token the values
that the head makes logits of, which are exact and a small share of the logits.
"""

from torch import Tensor

from gpukit.evaluation.scoring import Passes
from gpukit.evaluation.windows import Windows
from gpukit.generation.loading import LoadedModel

# Bytes of states on the host.
KEPT = 4 << 30


class KeptPasses(Passes):
    """`Passes` whose windows can be asked for again and again, in ascending order each time. The
    first `room` are kept, what does not fit into `KEPT` is computed anew; both gives the same bits.
    """

    def __init__(self, model: LoadedModel, windows: Windows) -> None:
        super().__init__(model, windows)
        self._kept: dict[int, Tensor] = {}
        self._device = model.decoder.device
        window = 4 * windows.scored * model.decoder.config.n_embd
        # Windows that pass together are kept together: others beside a window may round otherwise.
        passes = KEPT // window // self._together
        self.room = min(passes * self._together, len(windows))

    def _pass_through(self, first: int) -> None:
        if first in self._kept:
            self._states = {first: self._kept[first].to(self._device)}
            return
        super()._pass_through(first)
        for number, states in self._states.items():
            if number < self.room:
                self._kept[number] = states.to("cpu", copy=True)
