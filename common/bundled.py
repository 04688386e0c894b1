"""Files that come with the pack: where they lie, and what to do when one is lost."""

from pathlib import Path

MINIATURE = Path(__file__).resolve().parents[1] / "miniature"  # the model's four files; adapters below it


def cure(path: str, made_by: str = "--export miniature") -> str:
    """How to get a file back. path: below miniature/; made_by: of train.py, what makes it anew."""
    return (
        f"Install the pack again, or in a git checkout get it back with “git checkout -- miniature/{path}”, or build "
        f"it again with “python research/miniature/train.py {made_by}”."
    )
