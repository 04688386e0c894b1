"""`python mip.py concept101`: the paper's table for an adapter.

command.py        pictures, scores and table, resumable and in several processes
comfy_painter.py  the pictures, with ComfyUI's models and sampler
options.py        the command line
settings.py       the settings that shape the pictures
remarks.py        what a run does otherwise than the published rows
"""
