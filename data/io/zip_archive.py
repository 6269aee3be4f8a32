"""Zip archives that are not trusted: the wanted members, and nothing else, whole or not at all."""

import re
import shutil
import stat
import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

from data.io.files import whole_file
from data.schemas import UserError

MAX_MEMBER_BYTES = 4 << 30


def extract_members(archive: Path, wanted: list[Path], source: str) -> None:
    """Takes from an archive, for each wanted ``.../<folder>/<file>``, the member whose path ends so, and nothing else.

    Args:
        archive: a zip file.
        wanted: where the members go.
        source: whose archive it should be, for errors: "P5".

    Raises:
        UserError: a member's name climbs out of the folder, is absolute or is a link (nothing at all is extracted then), the
            archive is damaged, or a wanted member is not in it.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            for info in file.infolist():
                _refuse_unsafe(archive, info, source)
            found = [(_find_member(archive, file, path, source), path) for path in wanted]
            with ExitStack() as files:  # none of them takes its name before all are there
                for info, path in found:
                    temporary = files.enter_context(whole_file(path))
                    with file.open(info) as member, temporary.open("wb") as target:
                        shutil.copyfileobj(member, target)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise UserError(f"{archive} cannot be extracted ({error}); delete it to download it again") from error


def _refuse_unsafe(archive: Path, info: zipfile.ZipInfo, source: str) -> None:
    for name in (info.filename, info.orig_filename):
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name) or "\0" in name:
            raise UserError(
                f"{archive} is refused: its member {name!r} would be written outside the folder; get {source}'s archive elsewhere"
            )
    if stat.S_ISLNK(info.external_attr >> 16):
        raise UserError(f"{archive} is refused: its member {info.filename!r} is a symbolic link; get {source}'s archive elsewhere")


def _find_member(archive: Path, file: zipfile.ZipFile, path: Path, source: str) -> zipfile.ZipInfo:
    ending = (path.parent.name, path.name)
    matches = [info for info in file.infolist() if PurePosixPath(info.filename).parts[-2:] == ending and not info.is_dir()]
    if not matches:
        raise UserError(f"{archive} has no member {'/'.join(ending)}; expected {source}'s archive; delete it to download it again")
    member = min(matches, key=lambda info: len(info.filename))
    if member.file_size > MAX_MEMBER_BYTES:
        raise UserError(
            f"{archive} is refused: {member.filename} would take {member.file_size >> 30} GiB; get {source}'s archive elsewhere"
        )
    return member
