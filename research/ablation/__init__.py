"""The ablation (`python mip.py arms`): merging or training?

arms.py          the arms, the effects between them, and the trials
comfy_maker.py   makes and measures the pictures with ComfyUI
command.py       the command: which pictures, in which order, resumed
table.py         estimates with bootstrap intervals from the measured pictures
page.py          the estimates as a Markdown page
picture_grid.py  the arms side by side in one picture
"""
