"""The store with its verbs, as the library shows it."""

from pathlib import Path
from typing import TYPE_CHECKING

from gpukit import store
from gpukit.events import Report, ignore
from gpukit.given import path_of, path_or_none
from gpukit.recipes import share
from gpukit.recipes.bridge import Checkout
from gpukit.recipes.share import Transfer
from gpukit.store import CheckedModel, Collected, StoredModel, modelfile
from gpukit.store.collecting import GRACE
from gpukit.store.modelfile import Modelfile
from gpukit_kernels.devices import Device

if TYPE_CHECKING:
    from gpukit.planning.plan import Options
    from gpukit.recipes.show import ModelDetails


class Store(store.Store):
    """The models below `root`, laid out as Ollama's; a root that does not exist is an empty store.

    Without `root` it is the command line's: `$GPUKIT_MODELS`, else `$OLLAMA_MODELS`, else
    `~/.ollama/models`. Names are looked for in any case. `StoreError` tells of models that are
    damaged, NotFoundError of those that are not there, `ArgumentError` of what is no name.

        store = gpukit.Store("models")
        store.create("tiny:q4", gpukit.Modelfile(source="./tiny"), "Q4_K_M")
        print([str(model.name) for model in store.list()])
    """

    def __init__(self, root: str | Path | None = None) -> None:
        path = path_or_none(root, "a folder for the store")
        super().__init__(None if path is None else path.expanduser().absolute())

    def create(
        self,
        name: str,
        source: Modelfile | str | Path,
        quantize: str | None = None,
        *,
        imatrix: str | Path | None = None,
        options: "Options | None" = None,
        calibrate: str | Path | None = None,
        pre: str | None = None,
        hub: bool = False,
        merge: bool = False,
        converter: Checkout | None = None,
        provenance: bool = False,
        link: bool = False,
        device: Device = "auto",
        memory: int = 4 << 30,
        report: Report = ignore,
    ) -> StoredModel:
        """Make the model that `source`, a Modelfile or the path of one, describes, and put it here.
        `ModelfileError` for a value that no line of a Modelfile can set.

        `quantize` is a file type such as Q4_K_M; with it or `merge` adapters go into the weights,
        without they stay beside them. Of `options` the types of tensors count, whether blocks
        may become others, and `mtp`. `calibrate` is a text, or as a `Path` a file of it, that the
        model reads first: what it hears is the importance of its weights. With `link` a GGUF that
        is taken as it is may be a hard link: it must not be changed then. The other arguments are
        those of `gpukit.convert`. A failed or killed run leaves the store as it was.
        """
        self.find(name)  # before anything is read
        if not isinstance(source, Modelfile):
            source = modelfile.read(path_of(source, "a Modelfile or the path of one"))
        # What imports checkpoints computes with torch.
        from gpukit.recipes.create import create
        from gpukit.recipes.plan import options_of

        return create(
            self,
            name,
            source,
            quantize,
            device=device,
            budget=memory,
            pre=pre,
            imatrix=path_or_none(imatrix, "imatrix: a path"),
            options=options_of(options),
            calibrate=calibrate,
            hub=hub,
            merge=merge,
            converter=converter,
            provenance=provenance,
            link=link,
            report=report,
        )

    def show(self, name: str) -> "ModelDetails":
        """What is known of a model: architecture, sizes, parameters, texts, metadata, tensors."""
        # What reads GGUF files has numpy, which the other verbs do without.
        from gpukit.recipes.show import show

        return show(self, name)

    def copy(self, source: str, destination: str) -> None:
        """Give the model `source` a second name; a model that has it is replaced."""
        store.copy(self, source, destination)

    def remove(self, name: str) -> None:
        """Remove a model, and the blobs that no other model uses."""
        store.remove(self, name)

    def pull(self, name: str, *, insecure: bool = False, report: Report = ignore) -> Transfer:
        """Fetch a model from the registry that its name says, by default Ollama's.

        Every blob is checked against its digest before it is one of the store; a pull that was
        interrupted goes on where it stopped. `insecure` admits plain http and certificates that
        nobody vouches for. `NotFoundError` where the registry has no such model, `RegistryError`
        for whatever else goes wrong there.
        """
        return share.pull(self, name, insecure=insecure, report=report)

    def push(
        self,
        name: str | Path,
        to: str | None = None,
        *,
        insecure: bool = False,
        private: bool = False,
        report: Report = ignore,
    ) -> Transfer:
        """Send a model to the registry that its name says, or `to` another name.

        What the registry has is not sent, and an interrupted push goes on where it stopped.
        `hf.co/org/name` is the Hugging Face hub: then `name` may be the path of a .gguf file, and a
        repository that is made for it is `private` if so wished. `RegistryError` or `HubError`
        where it is refused.
        """
        return share.push(self, name, to, insecure=insecure, private=private, report=report)

    def verify(self, name: str | None = None, report: Report = ignore) -> tuple[CheckedModel, ...]:
        """Every model, or only `name`, with its blobs hashed again: each says what is not as its
        manifest has it. Nothing is changed; NotFoundError where `name` is not there."""
        names = self.names() if name is None else [self.existing(name)]
        return store.check_models(self, names, report)

    def gc(
        self, *, grace: float = GRACE, dry_run: bool = False, report: Report = ignore
    ) -> Collected:
        """Remove files that belong to no model and are older than `grace` seconds, by default an
        hour: blobs, unfinished pulls, temporary files. What a living command counts on stays.
        `StoreError` where a manifest is corrupt: then nothing goes."""
        return store.collect(self, grace=grace, dry=dry_run, report=report)

    def tidy(self) -> None:
        """Remove what killed commands left."""
        store.tidy(self)

    def list(self, prefix: str = "", report: Report = ignore) -> tuple[StoredModel, ...]:
        """The models whose names begin with `prefix` in any case, the latest first; `report` hears
        of those that cannot be read."""
        return tuple(self.models(report, prefix))
