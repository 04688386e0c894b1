"""Studies with the miniature.

steering.py        the means of steering, each as a before and an after, and the picture of both
comfy_steering.py  `python mip.py steer`: samples them with ComfyUI
options.py         the options that the commands have in common
comparison.py      settings compared over the same prompts, with intervals
comfy_study.py     what the commands share that draw many pictures and compare settings
overlap.py         intersection over union of relevance maps with the objects
comfy_overlap.py   `python mip.py overlap`: records the maps with ComfyUI
sites.py           how far each site's relevance, and the pool's, lies on the objects
comfy_sites.py     `python mip.py sites`: records the sites with ComfyUI
comfy_noisy.py     what the base sees of a drawn scene under noise
edits.py           an edit model's own references, with the bias and without: what is measured
comfy_edits.py     `python mip.py edits`: draws and judges the pictures with ComfyUI
styles.py          objects beside a style: what is measured
comfy_styles.py    `python mip.py styles`: draws and judges the pictures with ComfyUI
faces.py           looks in place of faces: the stand-in for the analyser, and what is measured
comfy_faces.py     `python mip.py faces`: prepares a training, draws and judges the pictures with ComfyUI
"""
