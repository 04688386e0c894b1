"""The method inside ComfyUI: patches on a clone of a model.

apply.py              references onto a model: encode, compile, install
encode.py             references to tokens and features, with the host's encoders
object_text.py        the words that name an object, encoded alone or found in the prompt
inner_lora.py         the LoRA inside a FaceID file, by the host's patches
siglip.py             SigLIP with the pooled embedding that the host's loader leaves out
site_patch.py         the patch at each cross-attention site
joint_patch.py        the patch around each block of FLUX.1
edit_patch.py         the attention of edit models, which take references by themselves
noise_patch.py        noise on the text attention
unet_call.py          one call of a model: what a patch must know, and what it measured
clock.py              when in the sampling the call is
batch_layout.py       which rows of the batch are what
cond_lists.py         which of the guider's lists the conds come from, and whether that is conditional
site_maps.py          regions and frozen maps, where a site sees them
site_pools.py         which pool a site reads, and which it adds to
sampling_state.py     what one sampling knows and keeps
sampling_wrappers.py  wrappers that collect this on the host's call stack
preview.py            the relevance on the host's preview
"""
