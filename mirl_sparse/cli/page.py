"""Offer ``mirl-sparse page``: restore photos in the browser, on this machine."""

from __future__ import annotations

from typing import Annotated

import typer


def page(
    port: Annotated[int, typer.Option(help="Port to serve at; 0 takes a free one.", min=0, max=65535)] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
) -> None:
    """Serve a page that restores photos in the browser, on this machine only, until Ctrl+C."""
    import webbrowser

    from mirl_sparse.web import BUILT
    from mirl_sparse.web.server import make_server

    with make_server(BUILT, port) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        print(f"serving at {address}; Ctrl+C stops", flush=True)
        if browser:
            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
