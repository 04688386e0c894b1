"""Adapter checkpoints: files to adapters, mapped to the UNet's sites. Only comfy_files.py imports ComfyUI.

files.py        weights files to tensors
torch_files.py  torch's files: which numbers lie where
pickles.py      a torch file's index, as `View`s, read without running it
layout.py       published key layouts, brought to one
foreign.py      files that are no adapters, recognised and named
spec.py         what an adapter is, by its keys and shapes
families.py     the image projections: keys and shapes
adapter.py      an adapter in memory
projection.py   image embeddings to image tokens
sites.py        the UNet's cross-attention sites
comfy_files.py  where models are stored
"""
