"""Downloads that are whole or absent: a progress bar, a part file that a broken download goes on from, size and checksum verified."""

import hashlib
import http.client
import logging
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

from data.io.files import UNWRITABLE
from data.io.progress import progress
from data.schemas import UserError

log = logging.getLogger("tiger.data")

CHUNK = 1 << 20
TIMEOUT = 60


def fetch(url: str, target: Path, ways: str, md5_url: str | None = None) -> None:
    """Downloads a file to ``target``; what has come of it stays in ``<target>.part`` after a break, and the next call goes on from there.

    Args:
        url: http or https.
        target: does not exist yet.
        ways: what else the user can do, the end of every error's sentence.
        md5_url: where the publisher keeps the checksum, as ``<32 hex digits>  name``; None: only the size is verified.

    Raises:
        UserError: no network, a break, another size or checksum than published, or a disk that cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        log.info("downloading %s to %s", url, target)
        expected = _published_md5(md5_url) if md5_url else None
        _receive(url, part)
        if expected is not None and (found := _md5(part)) != expected:
            part.unlink()
            raise UserError(f"{url} came with the md5 {found} instead of the published {expected}; {ways}")
        os.replace(part, target)
    except urllib.error.HTTPError as error:
        raise UserError(f"{target.name} is missing from {target.parent} and {url} answers {error.code} {error.reason}; {ways}") from error
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise UserError(f"cannot write {part} ({error.strerror}); free space or choose a folder that can be written to") from error
        came = f" after {part.stat().st_size:,} bytes, from which the same command goes on" if part.exists() else ""
        raise UserError(f"{target.name} is missing from {target.parent} and cannot be downloaded ({error}){came}; {ways}") from error


def _receive(url: str, part: Path) -> None:
    begun = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={begun}-"} if begun else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not begun:  # nothing is left to send, or the file there is another one now
            raise
        part.unlink()
        begun, answer = 0, urllib.request.urlopen(url, timeout=TIMEOUT)
    with answer:
        if answer.status != 206:
            begun = 0
        length = answer.headers.get("Content-Length")
        total = begun + int(length) if length and length.isdigit() else None
        bar = progress(total=total, initial=begun, unit="B", unit_scale=True, desc=part.stem)
        with bar, part.open("ab" if begun else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and part.stat().st_size != total:
        raise OSError(f"{part.stat().st_size:,} of {total:,} bytes came")


def _published_md5(url: str) -> str:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
        text = answer.read(1 << 16).decode("ascii", "replace")
    found = re.search(r"\b[0-9a-f]{32}\b", text, re.IGNORECASE)
    if not found:
        raise OSError(f"{url} holds no md5")
    return found[0].lower()


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
