"""Places that users name, made readable from other processes' working folders."""

from pathlib import Path

from omnifarm.concept.datasets.load import split_layout
from omnifarm.errors import ConfigError


def resolve_place(url: str, *, what: str) -> str:
    """Return a URL or an absolute path: workers run in other folders than this program.

    Args:
        url: As given; a layout may stand before it (`yollava+/data/set`).
        what: Name of the option, for messages.

    Raises:
        ConfigError: The place cannot be seen from another process.
    """
    layout, url = split_layout(url)
    if layout:
        return f"{layout}+{resolve_place(url, what=what)}"
    if "://" in url or url.startswith(("memory:", "file:", "s3:")):
        if url.startswith("memory:"):
            raise ConfigError(f"{what}: memory: is seen by one process only; give a folder or s3://bucket/prefix")
        return url
    path = Path(url).expanduser()
    if not path.is_absolute() and "working_dir_files" in Path.cwd().parts:
        raise ConfigError(
            f"{what} {url!r} is relative, but a submitted job runs in Ray's copy of the working directory, which is "
            f"deleted later: give an absolute path or s3://..."
        )
    return str(path.resolve())
