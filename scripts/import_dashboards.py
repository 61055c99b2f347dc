#!/usr/bin/env python3
"""Put the dashboards into a Grafana by its HTTP API; those that are there are replaced.

    GRAFANA_URL=https://grafana.example GRAFANA_TOKEN=... scripts/import_dashboards.py
    scripts/import_dashboards.py --folder FOLDER_UID dashboards/billaged-bill.json

The token is a service account's with the role Editor, taken from GRAFANA_TOKEN only. Needs nothing but
Python. Exit code 0: all are there; 1: one is not, and why; 2: used wrongly.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

DASHBOARDS: Final = Path(__file__).resolve().parent.parent / "dashboards"
TIMEOUT_SECONDS: Final = 30.0
# What Grafana says where its status alone would leave one guessing.
HINTS: Final = {
    401: "GRAFANA_TOKEN is wrong, has expired, or is of another Grafana",
    403: "the token's service account may not write here: it needs the role Editor, or the folder's permission",
    404: "this is no Grafana: GRAFANA_URL lacks its path, or is something else's; or there is no such folder",
    412: "one of the same title is in that folder, with another uid: rename or remove it",
}


class ImportFailed(Exception):
    """A dashboard is not in place; the message says which and why."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Following one would hand the token to wherever it leads, and make a GET of a POST."""

    def redirect_request(self, *_: object) -> None:
        return None


def read_dashboard(file: Path) -> dict[str, Any]:
    """A dashboard as Grafana exports it.

    Raises:
        ImportFailed: there is none in the file.
    """
    try:
        dashboard = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ImportFailed(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise ImportFailed(f"{file}: not JSON: {error}") from error
    if not isinstance(dashboard, dict) or not {"uid", "title", "panels"} <= dashboard.keys():
        raise ImportFailed(f"{file}: not a dashboard: it needs uid, title and panels")
    return dashboard


def body_of(dashboard: dict[str, Any], folder: str | None) -> bytes:
    """What Grafana's API takes: the dashboard wrapped, without the number that it had elsewhere."""
    wrapped: dict[str, Any] = {
        "dashboard": {**dashboard, "id": None},
        "overwrite": True,
        "message": "scripts/import_dashboards.py",
    }
    if folder is not None:
        wrapped["folderUid"] = folder
    return json.dumps(wrapped).encode()


def put(url: str, token: str, dashboard: dict[str, Any], folder: str | None) -> str:
    """Import one; its address.

    Raises:
        ImportFailed: Grafana does not take it, or is not there.
    """
    request = urllib.request.Request(
        f"{url}/api/dashboards/db",
        data=body_of(dashboard, folder),
        headers={
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
            "Accept": "application/json",
        },
    )
    try:
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=TIMEOUT_SECONDS) as answer:
            said = json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            raise ImportFailed(_refusal(error)) from error
    except urllib.error.URLError as error:
        raise ImportFailed(f"Grafana cannot be reached at {url}: {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise ImportFailed(f"Grafana at {url} did not answer: {error!r}") from error
    except ValueError as error:
        raise ImportFailed(f"what answers at {url} is no Grafana: {error}") from error
    if not isinstance(said, dict) or said.get("status") != "success":
        raise ImportFailed(f"Grafana did not say that it took it: {said!r}")
    # It comes with Grafana's own path, where it has one.
    return urllib.parse.urljoin(f"{url}/", str(said.get("url", "")))


def _refusal(error: urllib.error.HTTPError) -> str:
    if 300 <= error.code < 400:
        return f"Grafana redirects to {error.headers.get('Location')}: give its own address as GRAFANA_URL"
    try:
        message = str(json.load(error)["message"])
    except (ValueError, KeyError, TypeError):
        message = str(error.reason)
    hint = HINTS.get(error.code)
    return f"HTTP {error.code}: {message}" + (f" ({hint})" if hint else "")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default=os.environ.get("GRAFANA_URL"), help="Grafana's address (default: GRAFANA_URL)")
    parser.add_argument("--folder", metavar="UID", help="the uid of their folder (default: none, which is General)")
    parser.add_argument("files", nargs="*", type=Path, help="dashboards (default: all of dashboards/)")
    chosen = parser.parse_args(arguments)
    token = os.environ.get("GRAFANA_TOKEN", "").strip()
    if not chosen.url:
        parser.error("where is Grafana? Set GRAFANA_URL, or --url")
    if urllib.parse.urlsplit(chosen.url).scheme not in ("http", "https"):
        parser.error(f"{chosen.url}: an address begins with http:// or https://")
    if not token or not token.isascii() or not token.isprintable():
        parser.error("set GRAFANA_TOKEN to a service account's token")
    files = chosen.files or sorted(DASHBOARDS.glob("billaged-*.json"))
    if not files:
        parser.error(f"there are no dashboards in {DASHBOARDS}")
    failed = False
    for file in files:
        try:
            print(f"{file.name}: {put(chosen.url.rstrip('/'), token, read_dashboard(file), chosen.folder)}")
        except ImportFailed as error:
            print(f"{file.name}: {error}", file=sys.stderr)
            failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
