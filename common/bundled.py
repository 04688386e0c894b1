"""What to do when a file that comes with the pack is lost."""


def cure(path: str, made_by: str = "--export miniature") -> str:
    """How to get a file back. path: below miniature/; made_by: of train.py, what makes it anew."""
    return (
        f"Install the pack again, or in a git checkout get it back with “git checkout -- miniature/{path}”, or build "
        f"it again with “python miniature/train.py {made_by}”."
    )
