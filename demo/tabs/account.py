"""Signing in with Hugging Face, and "Push to my account"; nothing is laid out where nobody can sign in."""

from __future__ import annotations

import logging
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from demo.account import SIGN_IN, fault, is_offered, repository, send
from demo.results import apology
from demo.sessions import GONE
from fusemix.media import MediaError

logger = logging.getLogger(__name__)

SORRY = "Something went wrong on our side, and we have logged it. Please try again."
PUSHING: dict[str, Any] = {"concurrency_limit": 2, "concurrency_id": "push"}  # search never waits for it


def sign_in_button() -> None:
    """Lay out the button, or the reason why it is missing; nothing off a Space."""
    if not is_offered():
        return
    if broken := fault():
        logger.warning(broken)
        gr.HTML(f'<p class="fm-own-note">{escape(broken)}</p>')
        return
    with gr.Row(elem_classes="fm-chips"):
        gr.LoginButton(
            size="sm", variant="secondary", icon=None, logout_value="Sign out ({})"
        )  # the icon is no file that this page serves
    gr.HTML(
        '<p class="fm-own-note">Signed in, you can send the result to an account of your own. Sign in first: '
        "it loads the page anew. The app may then make repositories for you and touch no others; your token stays in a "
        "cookie of your browser, and we keep none.</p>"
    )


class PushRow:
    """Name, visibility and button that send an archive to the visitor's account."""

    def __init__(self, archive: Callable[[str | None], Path | None], *, name: str, private: bool) -> None:
        """Lay out the row and wire it; call inside the panel that appears with the result.

        Args:
            archive: Session of a visitor -> the .zip with what they made, or None; it may raise MediaError.
            name: Of the repository, as a proposal.
            private: Whether the repository is private unless the visitor says otherwise.
        """
        self.archive = archive
        if not is_offered() or fault():
            return
        with gr.Row(elem_classes=["fm-chips", "fm-keep"]):
            field = gr.Textbox(name, label="Name in your account", max_lines=1, max_length=96, scale=2, min_width=200)
            hidden = gr.Checkbox(private, label="Private", scale=0, min_width=120)
            button = gr.Button("Push to my account", size="sm", elem_classes="fm-push")
        told = gr.HTML(elem_classes="fm-pushed")
        button.click(self.push, [field, hidden], told, api_visibility="private", show_progress_on=told, **PUSHING)

    def push(
        self,
        name: str | None,
        private: bool | None,
        page: gr.Request,
        profile: gr.OAuthProfile | None,
        token: gr.OAuthToken | None,
    ) -> str:
        """Send the visitor's result with the visitor's token; say where it is, or why not."""
        try:
            if profile is None or token is None:
                raise MediaError(SIGN_IN)
            repo_id = repository(profile.username, name)
            archive = self.archive(page.session_hash)
            if archive is None:
                raise MediaError(GONE)
            address = send(archive, repo_id, token.token, private=private is not False)
        except MediaError as error:
            return apology(str(error))
        except Exception as error:
            # Without the traceback, in which a client's error may quote a request with its headers.
            logger.error("A visitor's result could not be pushed: %s.", type(error).__name__)
            return apology(SORRY)
        place = escape(address.rpartition("/commit/")[0] or address)
        return f'<p role="status">Sent: <a href="{place}" target="_blank" rel="noopener">{escape(repo_id)}</a></p>'
