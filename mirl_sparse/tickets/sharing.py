"""Give restorers what puts their tickets on the Hugging Face Hub."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mirl_sparse.tickets.hub import HubTicket


class Shareable(ABC):
    """Write the ticket of a restorer to a folder or repository; `mirl_sparse.load_restorer` reads it."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the ticket and a model card into a folder, for `mirl_sparse.load_restorer` (extra ``hub``).

        Args:
            folder: It is made if need be. A model card (``README.md``) that is there is kept. The file
                ``config.json`` gets the ticket's statistics. Neither a tuning nor a noise level is written.

        Raises:
            OSError: If the folder cannot be written.
        """
        self._hub_ticket().save_pretrained(folder)

    def push_to_hub(
        self,
        repository: str,
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        message: str = "Add a ticket of mirl-sparse",
    ) -> str:
        """Write the ticket to a repository of the Hugging Face Hub (extra ``hub``).

        A repository without a model card gets one; a card that is there stays as it is.

        Args:
            repository: "user/name"; it is made if need be.
            private: Whether a new repository is private; by default as the organisation has it.
            token: The token; by default the one of ``hf auth login``.
            branch: The branch to write to, main by default.
            message: What the commit says.

        Returns:
            The address of the commit.

        Raises:
            huggingface_hub.errors.HfHubHTTPError: If the Hub refuses.
        """
        from mirl_sparse.tickets.hub import CARD, has_card

        return self._hub_ticket().push_to_hub(
            repository,
            private=private,
            token=token,
            branch=branch,
            commit_message=message,
            ignore_patterns=CARD if has_card(repository, branch, token) else None,
            model_card_kwargs={"name": repository},
        )

    @abstractmethod
    def _hub_ticket(self) -> HubTicket:
        """Return the ticket, with what its model card says."""
