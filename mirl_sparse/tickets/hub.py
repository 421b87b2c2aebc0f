"""Share tickets on the Hugging Face Hub (extra ``hub``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelHubMixin, file_exists, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mirl_sparse.files import write_whole
from mirl_sparse.tickets.file import TICKET_FILE, TicketError

CARD = "README.md"
_PROBLEMS = {  # of several, the first one is told
    GatedRepoError: "may not be read yet; ask for access on its page, then run hf auth login",
    RepositoryNotFoundError: "no such file, nor a repository; if it is private, run hf auth login",
    RevisionNotFoundError: "the repository has no such revision",
    LocalEntryNotFoundError: "was never downloaded, and the Hub cannot be reached",
    EntryNotFoundError: f"the repository holds no {TICKET_FILE}; expected one of mirl-sparse",
}


def download(repository: str, revision: str | None) -> Path:
    """Return the file of a ticket of the Hub; it is downloaded once, and again if it has changed.

    Args:
        repository: "user/name".
        revision: A branch, a tag or a commit; None for the branch main.

    Raises:
        TicketError: The ticket cannot be downloaded.
    """
    try:
        return Path(hf_hub_download(repository, TICKET_FILE, revision=revision))
    except Exception as error:  # also whatever the library's HTTP client raises
        reason = " ".join(str(error).split())[:200]
        problems = (text for kind, text in _PROBLEMS.items() if isinstance(error, kind))
        raise TicketError(f"{repository}: {next(problems, f'cannot be downloaded ({reason})')}") from None


def has_card(repository: str, branch: str | None, token: str | None) -> bool:
    """Return whether a repository exists and holds a model card.

    Args:
        repository: "user/name".
        branch: The branch; None for main.
        token: The token; None for the one of ``hf auth login``.

    Raises:
        huggingface_hub.errors.HfHubHTTPError: The Hub refuses.
    """
    return file_exists(repository, CARD, revision=branch, token=token)


class HubTicket(
    ModelHubMixin, library_name="mirl-sparse", pipeline_tag="image-to-image", tags=["image-restoration"]
):
    """Give a ticket the Hub's ``save_pretrained`` and ``push_to_hub``.

    Args:
        content: A ticket file's content.
        statistics: See `mirl_sparse.tickets.Report`; without ``mac_density`` where that is not known.
    """

    def __init__(self, content: bytes, statistics: dict[str, float]) -> None:
        self._content, self._statistics = content, statistics

    def _save_pretrained(self, save_directory: Path) -> None:
        write_whole(save_directory / TICKET_FILE, self._content)

    def generate_model_card(self, name: str = "", **_: Any) -> ModelCard:
        """Return the model card, which says what the ticket holds and how to run it.

        Args:
            name: The repository; a folder has none.
        """
        s, source = self._statistics, name or "FOLDER"
        work = f", which do\n{s['mac_density']:.1%} of the multiply-adds" if "mac_density" in s else ""
        return ModelCard(f"""---
{self._hub_mixin_info.model_card_data.to_yaml()}
---

# A ticket of mirl-sparse

A *ticket* is a pruned image restoration network. This one holds {s["parameters"]:,.0f} of
{s["parameters_dense"]:,.0f} parameters: {s["density"]:.1%} of the prunable weights{work}. mirl-sparse runs
it without the rest.

    mirl-sparse restore photo.jpg --ticket {source}
    mirl-sparse inspect {source}

```python
from mirl_sparse import load_restorer

model = load_restorer("{source}")
restored = model(images)  # (B, 3, H, W) in [0, 1], any size from 1x1
```
""")
