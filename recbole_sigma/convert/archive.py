"""Files out of zip, tar and gzip: only those that are asked for, never outside their directory, never a link."""

import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Generator, Sequence
from contextlib import closing
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO

from recbole_sigma.errors import UserError, one_line

_BLOCK = 2**20  # bytes
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


def unpack(file: Path, folder: Path, patterns: Sequence[str], largest: int) -> list[Path]:
    """The files of an archive or directory whose names, without directories, match one of `patterns`; sorted.

    What is in an archive is copied into `folder`. A single file, plain or in a .gz, needs only the ending of the first
    pattern: it may have been renamed.

    Raises UserError for an archive that is damaged or encrypted, that holds a path outside its directory or a link in
    the place of a file, or whose files have more than `largest` bytes; and if nothing matches.
    """
    if file.is_dir():
        found = [path for path in file.rglob("*") if path.is_file() and _matches(path.name, patterns)]
    elif _is_archive(file):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            found = _copy(file, folder, patterns, largest)
        except (*_DAMAGED, RuntimeError) as error:  # RuntimeError: it needs a password
            raise UserError(f"{file}: cannot be unpacked: {one_line(error)}") from None
        except OSError as error:
            if error.errno is not None:  # of the disk
                raise
            raise UserError(f"{file}: cannot be unpacked: {one_line(error)}") from None
    else:
        found = [file] if _matches(file.name, patterns, alone=True) else []
    if not found:
        raise UserError(f"{file}: neither is nor holds {' or '.join(patterns)}")
    return sorted(found)


def _is_archive(file: Path) -> bool:
    """By the content, not by the name. Raises UserError for 7z, which Python cannot read."""
    with file.open("rb") as content:
        start = content.read(6)
    if start == b"7z\xbc\xaf\x27\x1c":
        raise UserError(f"{file}: a 7z archive; unpack it with '7z x {file.name}' and give the file that is in it")
    return start[:2] == b"\x1f\x8b" or zipfile.is_zipfile(file) or tarfile.is_tarfile(file)


def _copy(file: Path, folder: Path, patterns: Sequence[str], largest: int) -> list[Path]:
    copied, n_bytes = [], 0
    with closing(_members(file, patterns, largest)) as members:
        for name, content in members:
            target = folder / PurePosixPath(name).name
            if target in copied:
                raise UserError(f"{file}: holds two files {target.name}; give the one that is meant")
            with target.open("xb") as copy:
                while block := content.read(_BLOCK):
                    n_bytes += len(block)
                    if n_bytes > largest:
                        raise _too_large(file, largest)
                    copy.write(block)
            copied.append(target)
    return copied


def _members(file: Path, patterns: Sequence[str], largest: int) -> Generator[tuple[str, IO[bytes] | gzip.GzipFile]]:
    """Name and content of each file in an archive that matches."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if _wanted(file, entry.filename, patterns, stat.S_ISLNK(entry.external_attr >> 16)):
                    with archive.open(entry) as content:
                        yield entry.filename, content
    elif tarfile.is_tarfile(file):
        with tarfile.open(file) as tar:
            for member in tar:
                if member.offset_data + member.size > largest:  # it would be read to get to the next one
                    raise _too_large(file, largest)
                if _wanted(file, member.name, patterns, not member.isreg()) and (stream := tar.extractfile(member)):
                    yield member.name, stream
    elif _matches(name := file.name.removesuffix(".gz"), patterns, alone=True):
        with gzip.open(file) as content:
            yield name, content


def _wanted(file: Path, name: str, patterns: Sequence[str], special: bool) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{file}: holds {name!r}, which is outside its directory; get it from its publisher")
    matches = _matches(path.name, patterns)
    if matches and special:
        raise UserError(f"{file}: {name!r} is a link and not a file; get it from its publisher")
    return matches


def _matches(name: str, patterns: Sequence[str], alone: bool = False) -> bool:
    if name.startswith("."):  # as the ._NAME that a Mac adds to its archives
        return False
    same_ending = alone and PurePosixPath(name).suffix == PurePosixPath(patterns[0]).suffix
    return same_ending or any(fnmatchcase(name, pattern) for pattern in patterns)


def _too_large(file: Path, largest: int) -> UserError:
    return UserError(f"{file}: its files have more than {largest / 1e6:,.0f} MB, the most for an archive of this size")
