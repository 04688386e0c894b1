"""The ablation (`python mip.py arms`): merging or training?

variants.py      the variants, the effects between them, and the test prompts
comfy_maker.py   makes and measures the pictures with ComfyUI
command.py       the command: which pictures, in which order, resumed
table.py         estimates with bootstrap intervals from the measured pictures
page.py          the estimates as a Markdown page
picture_grid.py  the variants side by side in one picture
"""
