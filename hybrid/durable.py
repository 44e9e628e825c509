"""Files and directories that outlive a loss of power, and that a team can share."""

import errno
import os
import stat
from pathlib import Path


def sync_dir(path: Path) -> None:
    """Wait until the directory's entries are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot sync a directory, and say so like this; others make renames durable anyway.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def make_dir(path: Path) -> None:
    """Make a directory and its parents; a new one in a group-writable directory is group-writable too."""
    if path.is_dir():
        return
    if path != path.parent:
        make_dir(path.parent)
    try:
        os.mkdir(path)
    except FileExistsError:
        if not path.is_dir():
            raise
        return
    inherit_group_write(path)


def inherit_group_write(path: Path) -> None:
    """The umask of one user must not lock the others of a team out of a group-writable directory."""
    parent, mode = os.stat(path.parent).st_mode, os.stat(path).st_mode
    if parent & stat.S_IWGRP and not mode & stat.S_IWGRP:
        os.chmod(path, stat.S_IMODE(mode) | stat.S_IRWXG | (parent & stat.S_ISGID))


def let_group_write(path: Path) -> None:
    """From now on this process makes files that the group may read and write, if the directory is group-writable.

    A umask of 022 would keep others of a team from what has to be touched or replaced, one of 077 from reading too.
    """
    if os.stat(path).st_mode & stat.S_IWGRP:
        before = os.umask(0o007)
        os.umask(before & ~stat.S_IRWXG)
