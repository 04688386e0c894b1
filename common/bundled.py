"""Files that come with the pack: where they are, and how to restore a missing one."""

from pathlib import Path

MINIATURE = Path(__file__).resolve().parents[1] / "miniature"  # the model's four files; its adapters are below


def remedy(path: str, made_by: str = "--export miniature") -> str:
    """A sentence on how to restore a file.

    path: below miniature/.
    made_by: the arguments of train.py that build it again.
    """
    return (
        f"Install the pack again, or in a git checkout get it back with “git checkout -- miniature/{path}”, or build "
        f"it again with “python research/miniature/train.py {made_by}”."
    )
