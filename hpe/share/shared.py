"""A trained network as huggingface_hub's mixin shares it: a folder, or a hub."""

from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any, Self

from huggingface_hub import ModelCard, PyTorchModelHubMixin
from safetensors import SafetensorError
from torch import nn

import hpe
from hpe.config.run import RunConfig
from hpe.core.console import say
from hpe.core.errors import UserError, redacted, unwritable
from hpe.core.files import sync, write_json
from hpe.models.build import load_run
from hpe.models.checkpoints import SHARED_WEIGHTS, save_tensors
from hpe.models.run_folder import FORMAT, PRETRAINED, TrainedOn, pretrained, training_sets
from hpe.share.card import card
from hpe.share.hub import first_line, is_hub_name, local_folder, parse
from hpe.share.terms import refuse_unpublishable, trained_on

_FILES = ("README.md", SHARED_WEIGHTS, PRETRAINED)
"""In the order in which they come into a folder: without its config, which is the last, it is no network."""


class SharedNetwork(nn.Module, PyTorchModelHubMixin, library_name="hpe"):
    """A trained network with everything that others need to use it.

    ``save_pretrained(folder)``, ``push_to_hub("org/name")`` and ``from_pretrained("org/name")`` are those of
    huggingface_hub's mixin, with three differences: weights are read from safetensors alone, never from a pickle; the
    config is hpe's own, and is checked; and the card is hpe's model card.

    Args:
        run: run folder, or a folder of ``save_pretrained``.
        which: checkpoint of a run.
        permitted: why weights that were trained on these datasets may be published, if a dataset's terms forbid to
            pass on its images.

    Raises:
        UserError: there is no such run; on saving and publishing: it may not be published.
    """

    def __init__(self, run: Path, *, which: str = "best", permitted: str | None = None) -> None:
        super().__init__()
        self.network, config, self._weights = load_run(run, which)
        if self.network.takes_angles:
            raise UserError(f"{run}: this run's input is angles (backbone angles), not images; nothing to share")
        self._run, self._sets = run, trained_on(run)
        self._permitted = permitted or (pretrained(run) or {}).get("permitted")
        self._config = _without_places(config, run).model_dump(mode="json")
        self.eval()

    def refuse_unpublishable(self) -> None:
        """Refuse weights that may not be published.

        Raises:
            UserError: a dataset's terms forbid it, or are not known, and nobody states that it is permitted.
        """
        refuse_unpublishable(self._run, self._sets, self._permitted)

    def push_to_hub(self, repo_id: str, **settings: Any) -> str:
        """Publish as a new version of ``org/name``; the settings are those of huggingface_hub's mixin.

        Raises:
            UserError: as of :meth:`refuse_unpublishable`, before anything is sent.
        """
        self.refuse_unpublishable()
        return super().push_to_hub(repo_id, **settings)

    def forward(self, images: Any) -> Any:
        """The network's raw outputs for normalised images."""
        return self.network(images)

    def _save_pretrained(self, save_directory: Path) -> None:
        self.refuse_unpublishable()
        weights = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        save_tensors(save_directory / SHARED_WEIGHTS, weights)
        facts = training_sets(self._run)
        write_json(
            save_directory / PRETRAINED,
            {
                "library_name": "hpe",
                "format": FORMAT,
                "version": hpe.__version__,
                "config": self._config,
                "shards": {f"{at} {one.get('dataset')}": one for at, one in enumerate(facts)},
                "trained_on": TrainedOn.load(self._run).dump(),
                "terms": self._sets,
                "permitted": self._permitted,
            },
        )

    def generate_model_card(self, *_: Any, **__: Any) -> ModelCard:
        """hpe's model card, with the terms of the training data."""
        return ModelCard(card(self._run, self._weights, self._config, self._sets, self._permitted))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, revision: str | None = None, **settings: Any
    ) -> Self:
        """The network of a folder, or of a hub: ``org/name``; weights are read from safetensors alone.

        Args:
            pretrained_model_name_or_path: folder or name.
            revision: of a name: branch, tag or commit.
            settings: of the mixin there are no others here; the environment of huggingface_hub has them.

        Raises:
            UserError: it is not there, or not what it claims to be; a setting that is not supported.
        """
        if unknown := [name for name, value in settings.items() if value not in (None, False)]:
            raise UserError(
                f"from_pretrained: {', '.join(unknown)}: not supported; leave it out (see $HF_TOKEN, $HF_HOME)"
            )
        path = Path(pretrained_model_name_or_path)
        if not path.is_dir():
            name = str(pretrained_model_name_or_path)
            name = name if is_hub_name(name) else f"hf://{name}"
            path = local_folder(name if revision is None else f"{name}@{revision}")
        elif revision is not None:
            raise UserError(f"{path}: is a folder, which has no revision {revision!r}; leave it out")
        return cls(path)


def share(run: Path, target: str, *, which: str = "best", permitted: str | None = None, private: bool = False) -> str:
    """Write a trained network into a new folder, or publish it on a hub; returns where it is.

    Args:
        run: run folder.
        target: a folder that does not exist or is empty, or ``hf://org/name``.
        which: checkpoint.
        permitted: see :class:`SharedNetwork`.
        private: on a hub, for you and your organisation alone.

    Raises:
        UserError: it may not be published, the folder is in use, or the hub refuses.
    """
    if not is_hub_name(target):
        folder = Path(target)
        if private:
            raise UserError(f"--private: only with hf://org/name, not with the folder {target}")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder}: exists and is not empty; choose a new folder")
        save(SharedNetwork(run, which=which, permitted=permitted), folder)
        return str(folder)
    repo, revision = parse(target)
    if revision is not None:
        raise UserError(f"{target}: a network is published as a new version; leave out @{revision}")
    return push(SharedNetwork(run, which=which, permitted=permitted), repo, private=private)


def save(network: SharedNetwork, folder: Path) -> None:
    """Write a network into a folder; what a kill leaves there is not taken for one.

    Raises:
        UserError: it cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as aside:
            network.save_pretrained(written := Path(aside) / "network")
            folder.mkdir(exist_ok=True)
            for name in _FILES:
                sync(written / name)
                (written / name).replace(folder / name)
            sync(folder)
    except (OSError, SafetensorError) as error:
        raise unwritable(str(folder), error, "free some space, or choose another folder") from error


def push(network: SharedNetwork, repo: str, *, private: bool) -> str:
    """Publish a network as a new version of a repository; returns its address.

    Raises:
        UserError: the hub refuses, or cannot be reached.
    """
    network.refuse_unpublishable()
    say(f"hpe: publishing to hf://{repo}")
    try:
        return str(network.push_to_hub(repo, private=private or None, commit_message=f"hpe {hpe.__version__}"))
    except Exception as error:  # as in hpe.share.hub
        raise UserError(
            f"hf://{repo}: not published ({first_line(error)}); log in with `hf auth login`, check the name and the "
            "connection; $HF_ENDPOINT names another hub"
        ) from error


def _without_places(config: RunConfig, run: Path) -> RunConfig:
    """A config whose paths are names: those of its datasets, and of the run."""

    def plain(path: Any) -> Any:
        if path is None or isinstance(path, list):
            return None if path is None else [plain(one) for one in path]
        return PurePath(redacted(str(path)).partition("?")[0]).name or "shards"

    def named(sets: Any) -> Any:
        return [one.model_copy(update={"shards": plain(one.shards), "pose": plain(one.pose)}) for one in sets]

    data = config.data.model_copy(update={"train": named(config.data.train), "val": named(config.data.val)})
    start = config.model.weights if config.model.weights in ("none", "hub") else "none"
    model = config.model.model_copy(update={"weights": start})
    return config.model_copy(update={"run": run.resolve().name, "data": data, "model": model})
