"""An adapter on the Hugging Face hub, with its card and a few clips."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from music_ddpo.core.errors import UserError, in_one_line
from music_ddpo.core.params import Params
from music_ddpo.measuring import clips

ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "README.md")
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token with write access, and run again"


def gather(folder: Path, reward: str, params: Params) -> list[str]:
    """Copies what is published to an empty folder: the adapter, its card, and for each emotion the first two clips.

    Returns
    -------
    The relative paths.

    Raises
    ------
    UserError
        If a file is missing.
    """
    if reward not in params.rewards:
        raise UserError(f"{reward!r} is not among `rewards` ({', '.join(params.rewards)}) in params.yaml.")
    places = {name: Path("models/adapters") / reward / name for name in ADAPTER}
    index, _ = clips.load(Path("clips") / reward, params)
    for row in index.drop_duplicates("emotion").itertuples():
        for model, source in (("original", "baseline"), (reward, reward)):
            places[f"clips/{row.emotion}-{model}.wav".replace(" ", "_")] = Path("clips") / source / str(row.clip)
    for name, path in places.items():
        if not path.is_file():
            raise UserError(f"{path}: not found; run `dvc repro` first.")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    card = folder / "README.md"
    heard = [name for name in places if name.endswith(".wav")]
    card.write_text(card.read_text(encoding="utf-8") + _listening(heard), encoding="utf-8")
    return list(places)


def _listening(names: Sequence[str]) -> str:
    lines = ["", "## Clips", "", "The first clip of each emotion, of the untouched model and with the adapter:", ""]
    return "\n".join([*lines, *(f"- [{Path(name).stem}]({name})" for name in names)]) + "\n"


def check_repo(repo: str) -> None:
    """`UserError` if it is no name of a repository with its owner."""
    try:
        validate_repo_id(repo)
        named = repo.count("/") == 1
    except HFValidationError:
        named = False
    if not named:
        raise UserError(f"--repo: {repo!r} must be owner/name, of letters, digits, '-', '_' and '.'.")


def upload(folder: Path, repo: str, private: bool) -> str:
    """Uploads a folder as one commit to a model repository, which is created if need be; returns its address.

    Raises
    ------
    UserError
        If it is refused or not reached.
    """
    api = HfApi()
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Adapter, card and clips")
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise UserError(f"{repo}: the hub does not let you write there ({status}); {LOG_IN}.") from None
        raise UserError(f"{repo}: the hub refuses it ({in_one_line(error, 200)}); nothing was published.") from None
    except (HTTPError, OSError) as error:
        raise UserError(f"{repo}: the hub is not reached ({in_one_line(error, 200)}); run again later.") from None
    return str(url)
