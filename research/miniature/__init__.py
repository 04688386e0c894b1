"""Training of the miniature and of its adapters.

train.py           the script: stages, gate, export
stages/            what each stage of the training does
clip.py            CLIP's text and image models in plain torch
comfy_networks.py  ComfyUI's network classes at the miniature's size
seeded.py          seeded weights of untrained adapters
trained.py         the kinds of trained adapters, and where their files lie
world_files.py     drawn scenes in the training-data layout
"""
