"""The method: relevance-weighted merge of several references in a UNet's cross-attention (arXiv 2409.17920).

relevance.py    A_i and its shares Ã_i           merge.py       gated block attention to the image tokens
fusion_head.py  g̃                                site.py        one site, all equations together
plan.py         references compiled for all sites reference.py  pictures and text of one object
options.py      the artist's choices             noise.py       noise on Z_text, for the object relevance score
host_*.py       the only files that know ComfyUI
"""
