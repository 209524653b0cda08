"""Share models on the hub: save, load and push through huggingface_hub's mixin, with a model card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import HfApi, ModelCard, ModelHubMixin

from mmcon.errors import InputError
from mmcon.inference.model_card import CARD, EXPORT_KEY, model_card
from mmcon.inference.saving import save_loaded
from mmcon.models.pretrained import model_load_errors

if TYPE_CHECKING:
    from mmcon.inference.loaded_model import LoadedModel

_MESSAGE = "Upload a model of mmcon"


class HubModel(ModelHubMixin):
    """Base class of `LoadedModel`: `save_pretrained`, `from_pretrained` and `push_to_hub`.

    A saved model is a folder that `mmcon.load` opens, with its card as README.md.
    """

    def _save_pretrained(self, save_directory: Path) -> None:
        save_loaded(self, save_directory)  # type: ignore[arg-type]

    def generate_model_card(self, **options: Any) -> ModelCard:
        """The card of the model; options are those of `mmcon.inference.model_card.model_card`."""
        return model_card(self, **options)  # type: ignore[arg-type]

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> LoadedModel:  # type: ignore[override]
        """`mmcon.load`: a folder, or a name on the hub with its `revision`."""
        from mmcon.inference.loading import load

        return load(name, **options)

    def push_to_hub(self, repo_id: str, *, license: str | None = None, **options: Any) -> str:
        """Upload the model with its card.

        >>> model.push_to_hub("owner/photos", license="apache-2.0", private=True)  # doctest: +SKIP

        Args:
            repo_id: the name on the hub; it is created if there is none.
            license: the license of the weights, for the card.
            options: of huggingface_hub's `push_to_hub`: `private`, `token`, `branch`, `commit_message`, `create_pr`.

        Returns:
            The address of the commit; its attribute `oid` is a revision that `mmcon.load` takes.

        Raises:
            DataError: the hub cannot be reached, the name is not valid, or the token may not write there.
        """
        card = {"license": license, "name": repo_id}
        options = {"commit_message": _MESSAGE, "model_card_kwargs": card, **options}
        with _upload_errors(repo_id):
            return super().push_to_hub(repo_id, **options)


def push_to_hub(model: str | Path | LoadedModel, repo_id: str, **options: Any) -> str:
    """Upload a model, a run's model, or an exported folder; see `LoadedModel.push_to_hub`.

    >>> push_to_hub("runs/photos", "owner/photos", license="apache-2.0")  # doctest: +SKIP

    Args:
        model: what `mmcon.load` takes, a loaded model, or a folder that `mmcon export` wrote.
        repo_id: the name on the hub.
        options: of `LoadedModel.push_to_hub`.
    """
    from mmcon.inference.loading import load

    if not isinstance(model, str | Path):
        return model.push_to_hub(repo_id, **options)
    folder = Path(model).expanduser()
    if exported_format(folder) is None:
        return load(model).push_to_hub(repo_id, **options)
    return _push_folder(folder, repo_id, **options)


def exported_format(folder: Path) -> str | None:
    """The format of an export, from its card; None for any other folder."""
    if not (folder / CARD).is_file():
        return None
    try:
        return ModelCard.load(folder / CARD).data.get(EXPORT_KEY)
    except (ValueError, yaml.YAMLError):  # a README.md whose metadata are no YAML is not of an export
        return None


def _push_folder(
    folder: Path,
    repo_id: str,
    *,
    license: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    commit_message: str = _MESSAGE,
    create_pr: bool | None = None,
) -> str:
    if license is not None:
        card = ModelCard.load(folder / CARD)
        card.data.license = license  # type: ignore[attr-defined]
        card.save(folder / CARD)
    with _upload_errors(repo_id):
        api = HfApi(token=token)
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        options: dict[str, Any] = {"commit_message": commit_message, "revision": branch, "create_pr": create_pr}
        return api.upload_folder(repo_id=name, folder_path=folder, **options)


@contextmanager
def _upload_errors(repo_id: str) -> Iterator[None]:
    if repo_id.count("/") > 1 or repo_id.startswith((".", "/", "~")):
        raise InputError("push to the hub", expected="a name such as owner/photos", got=repr(repo_id))
    with model_load_errors(
        f"push_to_hub({repo_id!r})",
        expected="a hub that can be reached, a name such as owner/photos, and a token that may write there",
        fix="hf auth login, or set HF_TOKEN; check the name and the network",
    ):
        yield
