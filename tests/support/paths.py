"""Paths of files that tests read."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
DATA, API = TESTS / "data", TESTS / "api"  # golden files and snapshots; workflows in API format
TRAINING_PROCESS = TESTS / "support" / "training_process.py"
