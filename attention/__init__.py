"""The method: relevance-weighted merge of several references in a UNet's cross-attention (arXiv 2409.17920).

Pure PyTorch: no file here imports ComfyUI.

relevance.py       relevance A_i and the shares Ã_i
pool.py            one relevance for all sites
merge.py           attention to the image tokens, one softmax for each object
fusion_head.py     the gate g̃
site.py            one cross-attention site: all equations together
joint.py           the same where text and picture attend together, as in FLUX.1
share_bias.py      edit models: the references of their own sequence, told apart by a bias
plan.py            references compiled for all sites
shared_text.py     object texts, scaled for the sites
options.py         what the artist chooses
block_strength.py  strength by block
ease.py            strength over time
schedule.py        which objects act when
reference.py       pictures and text of one object
face.py            what a face's reference holds beside its pictures
regions.py         boxes as masks, areas of the canvas
noise.py           noise on Z_text, for the object relevance score
"""
