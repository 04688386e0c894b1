"""Words on pictures in any script: the system's fonts where Pillow's own lacks a sign, numbers where all of them do."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mip_adapter.common import drawing
from mip_adapter.relevance import maps
from PIL import ImageFont

from ..conftest import ROOT
from ..support.subprocesses import finished

NOWHERE = "𒀀"  # cuneiform: none of the fonts that we look for has it


def installed(name: str) -> bool:
    try:
        ImageFont.truetype(name, 16)
    except OSError:
        return False
    return True


def test_english_is_in_pillow_s_own_font() -> None:
    for words in ("a red cup, 71 %", "cat, dog…", ""):
        assert drawing.letters(words, 20).getname()[0] == "Aileron"


@pytest.mark.skipif(not installed("DejaVuSans.ttf"), reason="no DejaVu Sans on this machine")
@pytest.mark.parametrize("words", ["кот", "ποτήρι", "café crème", "Tür ×"])
def test_a_font_of_the_system_has_what_it_lacks(words: str) -> None:
    font = drawing.letters(words, 18)
    assert font.getname()[0] == "DejaVu Sans" and font.size == 18
    assert drawing.drawable([words]) == (words,)
    assert len({font.getmask(sign).getbbox() for sign in words if sign.isalpha()} - {None}) > 1  # not boxes all alike


@pytest.mark.skipif(not any(map(installed, drawing.FILES[3:])), reason="no font with Chinese on this machine")
@pytest.mark.parametrize("words", ["猫", "红色的咖啡杯 cup"])
def test_chinese(words: str) -> None:
    assert drawing.drawable([words, "杯子"]) == (words, "杯子")
    seen = [bytes(np.asarray(maps.legend([(each, 0)], 200))) for each in ("猫", "狗")]
    assert seen[0] != seen[1]


def test_without_a_font_objects_go_by_number() -> None:
    assert drawing.drawable(["cat", NOWHERE, f"a {NOWHERE}"]) == ("cat", "object 2", "object 3")
    assert drawing.letters(NOWHERE, 14).getname()[0] == "Aileron"
    shares = torch.rand(2, 32, 128).softmax(0)
    drawn, said = (
        maps.draw_overlays(torch.ones(32, 128, 3), shares, ("cat", name), (0, 1), 0.6, "")
        for name in (NOWHERE, "object 2")
    )
    assert all(torch.equal(*each) for each in zip(drawn, said, strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no variable says where fonts are")
def test_on_a_machine_without_fonts(tmp_path: Path) -> None:
    """Chinese has no letters there, and English its own."""
    ask = f"""
import runpy
load = runpy.run_path({str(ROOT / "launcher" / "package.py")!r})["load_package"]
print(*load("common.drawing").drawable(["cat", "猫"]), sep=", ")
"""
    empty = {"XDG_DATA_HOME": str(tmp_path), "XDG_DATA_DIRS": str(tmp_path), "HOME": str(tmp_path)}
    done = finished([sys.executable, "-c", ask], env=empty, cwd=tmp_path)
    assert done.stdout == "cat, object 2\n", done.stderr
