"""Unpack an archive, with no way out of the target folder."""

import shutil
import tarfile
from pathlib import Path, PurePosixPath

from .errors import HostError


def extract(archive: Path, subtree: str, target: Path) -> None:
    """Write the folder ``subtree`` of a tar archive as ``target``.

    Only plain files and folders are taken. A name that leaves the target, a link or a device refuses the
    whole archive, so an archive can write nowhere else. File modes are not taken over.
    """
    root = PurePosixPath(subtree)
    with tarfile.open(archive) as tar:
        members = [(member, PurePosixPath(member.name)) for member in tar]
        inside = [(member, name.relative_to(root)) for member, name in members if name.is_relative_to(root)]
        for member, name in inside:
            if ".." in name.parts or "\\" in str(name) or ":" in str(name):
                raise HostError(f"{archive.name} holds the unsafe path {member.name!r}: nothing was extracted.")
            if not (member.isfile() or member.isdir()):
                raise HostError(
                    f"{archive.name} holds {member.name!r}, neither file nor folder: nothing was extracted."
                )
        if not inside:
            raise HostError(f"{archive.name} holds no folder {subtree!r}: it is not the archive that was expected.")
        for member, name in inside:
            path = target.joinpath(*name.parts)
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None  # a plain file always opens
            with source, path.open("wb") as file:
                shutil.copyfileobj(source, file)
