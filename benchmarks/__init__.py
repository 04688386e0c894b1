"""Benchmarks.

bench.py            `mip.py bench`: time, work and memory of the merge beside other formulations
formulations.py     the formulations that the merge is measured against
measure.py          operations and memory of a function
comfy_step.py       time of a UNet step in ComfyUI: plain, patched, recorded
edit_references.py  time and memory of telling an edit model's references apart
relevance_score.py  `mip.py relevance`: the object relevance score on the miniature
"""
