"""A report's file and, where its photos are too many to lie in it, their folder beside it.

A photo's file has its content's hash as its name. So an older report keeps its photos until the new one
has taken its place, and only then do those go that nothing shows any more.
"""

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from amx_jax.data.results import write_whole
from amx_jax.errors import OutputError, one_line

# A page is read as a whole before it is shown; measured by benchmarks/report.py.
EMBEDDED = 64 * 2**20  # bytes of photos that lie in the page itself, at most
_NAME = re.compile(r"[0-9a-f]{32}\.png")


class ReportFiles:
    """Takes the photos of a report, and then its page.

    Args:
        path: of the page.
        limit: bytes of photos that lie in the page, at most.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = ReportFiles(Path(folder, "report.html"), limit=5)
        ...     for photo in (b"cat", b"dog"):
        ...         files.add(photo)
        ...     found = [isinstance(photo, str) for photo in files.photos()]
        ...     page = files.write("<p>two photos")
        ...     found, sorted(path.name for path in Path(folder).iterdir())
        ([True, True], ['report-files', 'report.html'])
    """

    def __init__(self, path: Path, limit: int = EMBEDDED):
        self._path, self._left = path, limit
        self._folder = path.with_name(f"{path.stem}-files")
        self._photos: list[bytes | str | None] = []
        self._outside = False

    def add(self, photo: bytes | None) -> None:
        """Take the next photo.

        Args:
            photo: a PNG file, or None where there is none to show.

        Raises:
            OutputError: it has no room in the page, and cannot be written beside it.
        """
        self._photos.append(photo)
        self._left -= len(photo or b"")
        if self._outside:
            self._photos[-1] = self._put(photo)
        elif self._left < 0:
            self._outside = True
            self._photos = [self._put(before) for before in self._photos]

    def photos(self) -> list[bytes | str | None]:
        """Each photo's PNG file, or its address from the page where there are too many, or None."""
        return self._photos

    def write(self, page: str) -> Path:
        """Write the page, and take away the photos of an older one.

        Args:
            page: HTML.

        Returns:
            The file.

        Raises:
            OutputError: it cannot be written.
        """
        write_whole(self._path, page.encode("utf-8", "backslashreplace"))
        kept = {photo.rpartition("/")[2] for photo in self._photos if isinstance(photo, str)}
        with suppress(OSError):  # whoever looks at the report does not miss what nothing shows
            for path in self._folder.iterdir():
                if _NAME.fullmatch(path.name) and path.name not in kept:
                    path.unlink()
            if not kept:
                self._folder.rmdir()
        return self._path

    def _put(self, photo: bytes | str | None) -> str | None:
        if not isinstance(photo, bytes):
            return photo
        name = f"{hashlib.sha256(photo).hexdigest()[:32]}.png"
        try:
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{one_line(self._folder)}: cannot be made: {error.strerror or error}; make room or "
                "choose another file with --output"
            ) from error
        if not (self._folder / name).exists():
            write_whole(self._folder / name, photo)
        return f"{quote(os.fsencode(self._folder.name))}/{name}"
