"""The bearer token of HTTP: given as it is, or in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from billaged.identity.reading import read_file
from billaged.model.errors import SettingError

_CHARACTERS_MIN: Final = 16
_BYTES_MAX: Final = 4096


def read_token(token: str | None, file: Path | None) -> str | None:
    """The token in force; None where none is asked for.

    Raises:
        SettingError: the file cannot be read, or holds no token; never with what it holds.
    """
    if token is not None:
        return token
    if file is None:
        return None
    try:
        text = read_file(file, _BYTES_MAX).data.decode("ascii").strip()
    except OSError as error:
        raise SettingError(f"UNKEY_BILLAGED_HTTP_TOKEN_FILE: {file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        text = ""
    if not _CHARACTERS_MIN <= len(text) < _BYTES_MAX or not all("!" <= character <= "~" for character in text):
        raise SettingError(
            f"UNKEY_BILLAGED_HTTP_TOKEN_FILE: {file} holds no token of at least {_CHARACTERS_MIN} visible ASCII"
            " characters.",
            "openssl rand -hex 32 makes one.",
        )
    return text
