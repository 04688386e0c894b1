"""Encoders turn pictures and words into embeddings that can be compared.

encoder.py        the protocols, and encoders from local Hugging Face folders
comfy_encoder.py  ComfyUI's CLIP_VISION and CLIP as an encoder
embeddings.py     unit embeddings of pictures and words
"""
